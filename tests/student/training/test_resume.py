"""A run that is killed anywhere and run again ends bit-identical."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from student import MixConfig, TrainConfig
from student.errors import CheckpointError, RunMismatchError
from student.run_record import read_run
from student.training import learner, loop
from student.training.run_log import read_metrics
from student.training.stop_signals import stop_signals
from student.training.trainer import train
from tests.student.training.runs import Stop, Undisturbed, fail_after, final_files, lines_of, stopped_at, without_timing

pytestmark = pytest.mark.usefixtures("log_every_step")


@pytest.mark.parametrize("steps", [(1,), (3,), (4,), (6, 2), (7, 1, 1), (8,)])
def test_a_run_stopped_at_any_step_ends_with_the_same_bytes(
    undisturbed: Undisturbed, tmp_path: Path, steps: tuple[int, ...]
) -> None:
    config, files, metrics = undisturbed
    config = dataclasses.replace(config, out=tmp_path / "student")
    for step in steps:
        with stopped_at(step):
            train(config)
        assert not (config.out / "run.json").exists()
    train(config)
    assert final_files(config.out) == files
    found = read_metrics(config.out)
    assert lines_of(found) == lines_of(metrics)
    assert without_timing(found) == without_timing(metrics)
    seconds = [line["seconds"] for line in found]
    assert seconds[0] > 0
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("steps", [(2,), (5,), (7, 1)])
def test_means_over_several_steps_go_on_over_a_resume(
    undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, steps: tuple[int, ...]
) -> None:
    monkeypatch.setattr(loop, "_LOG_EVERY", 5)
    whole = dataclasses.replace(undisturbed[0], out=tmp_path / "whole", checkpoint_every=2)
    train(whole)
    config = dataclasses.replace(whole, out=tmp_path / "student")
    for step in steps:
        with stopped_at(step):
            train(config)
    train(config)
    found = without_timing(read_metrics(config.out))
    assert found == without_timing(read_metrics(whole.out))
    [of_five, of_three] = [line for line in found if "validation" not in line]
    lines = [line for line in undisturbed[2] if "validation" not in line]
    for name in ("soft_targets_nats", "gradient_norm"):
        values = [line[name] for line in lines]
        assert of_five[name] == pytest.approx(sum(values[:5]) / 5, rel=1e-5)
        assert of_three[name] == pytest.approx(sum(values[5:]) / 3, rel=1e-5)


def test_a_resumed_run_does_not_repeat_the_steps_before_its_checkpoint(
    undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = dataclasses.replace(undisturbed[0], out=tmp_path / "student")
    with stopped_at(8):
        train(config)
    done: list[int] = []
    original = learner.learning_rate
    monkeypatch.setattr(learner, "learning_rate", lambda step, config: (done.append(step), original(step, config))[1])
    train(config)
    assert set(done) == {6, 7}


@pytest.mark.parametrize(
    ("module", "name", "calls"),
    [
        ("student.training.checkpoint", "torch.save", 0),
        ("student.training.checkpoint", "torch.save", 1),
        ("student.training.loop", "RunLog.write", 6),
        ("student.training.loop", "evaluate_model", 3),
        ("student.training.trainer", "load_cache_tokenizer", 0),
    ],
)
def test_a_run_that_fails_while_it_saves_or_evaluates_ends_with_the_same_bytes(
    undisturbed: Undisturbed,
    tmp_path: Path,
    module: str,
    name: str,
    calls: int,
) -> None:
    config, files, metrics = undisturbed
    config = dataclasses.replace(config, out=tmp_path / "student")
    with pytest.MonkeyPatch.context() as patch:
        fail_after(patch, f"{module}.{name}", calls)
        with pytest.raises(Stop):
            train(config)
    train(config)
    assert final_files(config.out) == files
    assert lines_of(read_metrics(config.out)) == lines_of(metrics)


@pytest.mark.parametrize("moved", [0, 1, 3])
def test_a_run_killed_while_it_publishes_the_student_ends_with_the_same_bytes(
    undisturbed: Undisturbed,
    tmp_path: Path,
    moved: int,
) -> None:
    config, files, _ = undisturbed
    config = dataclasses.replace(config, out=tmp_path / "student")
    with pytest.MonkeyPatch.context() as patch:
        fail_after(patch, "pathlib.Path.replace", moved)
        with pytest.raises(Stop):
            train(config)
    assert not (config.out / "run.json").exists()
    train(config)
    assert final_files(config.out) == files


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU]
)
def test_a_run_asked_to_stop_saves_its_step_and_resumes_from_it(
    undisturbed: Undisturbed,
    tmp_path: Path,
    number: int,
) -> None:
    config, files, _ = undisturbed
    config = dataclasses.replace(config, out=tmp_path / "student", checkpoint_every=100)
    handler = signal.getsignal(number)
    with stopped_at(5, number):
        train(config)
    assert signal.getsignal(number) is handler
    assert torch.load(config.out / "checkpoint.pt", weights_only=True)["step"] == 5
    train(config)
    assert final_files(config.out) == files


def test_a_signal_sent_twice_stops_at_once_if_it_is_ctrl_c() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        with stop_signals() as stop:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            assert stop == [number, number]
    with stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop == [signal.SIGTERM, signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_closed_terminal_does_not_stop_what_nohup_started() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop == []
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    "name",
    ["student.training.loop.evaluate_model", "student.training.loop.RunLog.write", "storage.progress.tqdm.update"],
)
def test_what_fails_at_the_step_of_a_checkpoint_does_not_lose_it(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The resume then logs what was left out, once."""
    monkeypatch.setattr(loop, "_LOG_EVERY", 4)
    whole = dataclasses.replace(undisturbed[0], out=tmp_path / "whole", checkpoint_every=4, evaluate_every=4)
    train(whole)
    config = dataclasses.replace(whole, out=tmp_path / "student", quiet=False)
    with pytest.MonkeyPatch.context() as patch:
        fail_after(patch, name, 3 if name.endswith("update") else 0)
        with pytest.raises(Stop):
            train(config)
    assert torch.load(config.out / "checkpoint.pt", weights_only=True)["step"] == 4
    train(config)
    assert without_timing(read_metrics(config.out)) == without_timing(read_metrics(whole.out))
    assert final_files(config.out) == undisturbed[1]
    seconds = [line["seconds"] for line in read_metrics(config.out)]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("log_every", [4, 3])
def test_a_run_begun_by_an_earlier_version_goes_on(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    """It logged and validated before it saved, so that the means began anew; it noted the preset's name alone."""
    monkeypatch.setattr(loop, "_LOG_EVERY", log_every)
    whole = dataclasses.replace(undisturbed[0], out=tmp_path / "whole", checkpoint_every=4, evaluate_every=4)
    train(whole)
    config = dataclasses.replace(whole, out=tmp_path / "student")
    with stopped_at(6):
        train(config)
    state = torch.load(config.out / "checkpoint.pt", weights_only=True)
    del state["run"]["preset_sha256"]
    if state["step"] % log_every == 0:
        state["meter"] |= {"sums": {}, "num_steps": 0, "num_tokens": 0, "step_seconds": 0.0}
    torch.save(state, config.out / "checkpoint.pt")
    train(config)
    assert without_timing(read_metrics(config.out)) == without_timing(read_metrics(whole.out))
    assert final_files(config.out) == undisturbed[1]


@pytest.mark.parametrize("is_finished", [False, True])
def test_a_run_begun_by_an_earlier_version_keeps_its_weight_of_candidates(
    undisturbed: Undisturbed, tmp_path: Path, is_finished: bool
) -> None:
    """A weight that was not given is 0.25 then, and stated as none; a run that begins now states its own."""
    new = dataclasses.replace(undisturbed[0], mix=MixConfig(), out=tmp_path / "new")
    train(new)
    assert read_run(new.out)["mix"] == {"soft_targets": None, "samples": None, "beams": 0.05, "labels": None}
    stated = dataclasses.replace(new, mix=MixConfig(beams=0.25), out=tmp_path / "stated", checkpoint_every=4)
    train(stated)
    old = dataclasses.replace(stated, out=tmp_path / "old")
    with contextlib.nullcontext() if is_finished else stopped_at(6):
        train(old)
    record = old.out / ("run.json" if is_finished else "checkpoint.pt")
    state = json.loads(record.read_text()) if is_finished else torch.load(record, weights_only=True)
    (state if is_finished else state["run"])["mix"]["beams"] = None
    record.write_text(json.dumps(state)) if is_finished else torch.save(state, record)
    with pytest.raises(RunMismatchError, match="mix"):
        train(dataclasses.replace(old, mix=MixConfig(beams=0.05)))
    train(dataclasses.replace(old, mix=MixConfig()))
    assert without_timing(read_metrics(old.out)) == without_timing(read_metrics(stated.out))
    weights = [(student.out / "model.safetensors").read_bytes() for student in (old, stated)]
    assert weights[0] == weights[1]


def test_a_damaged_checkpoint_is_an_error_of_its_own(train_config: Callable[..., TrainConfig]) -> None:
    config = train_config(checkpoint_every=1)
    with stopped_at(3):
        train(config)
    checkpoint = config.out / "checkpoint.pt"
    whole = checkpoint.read_bytes()
    for damaged in (whole[:1000], whole[:-5], b"", b"no checkpoint" * 100):
        checkpoint.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"damaged checkpoint \([^.]*\); delete it") as caught:
            train(config)
        assert "arbitrary code" not in str(caught.value)


def test_a_run_killed_before_its_checkpoint_was_removed_is_tidied_by_the_next(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    config, files, _ = undisturbed
    config = dataclasses.replace(config, out=shutil.copytree(config.out, tmp_path / "student"))
    (config.out / "checkpoint.pt").write_bytes(b"of the last step")
    (config.out / ".tmp-student").mkdir()
    train(config)
    assert not (config.out / "checkpoint.pt").exists()
    assert not (config.out / ".tmp-student").exists()
    assert final_files(config.out) == files
