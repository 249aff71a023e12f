"""Training: killed anywhere and run again it ends bit-identical, and only a run with the same settings resumes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline import SoftTargetsConfig
from storage import Cache
from storage.disk.directory_lock import only_writer
from storage.errors import (
    ConfigError,
    HashMismatchError,
    IncompleteCacheError,
    MissingFileError,
    MissingKindError,
    NoCacheError,
)
from student import EvaluateConfig, MixConfig, TrainConfig
from student.errors import CheckpointError, DivergedError, RunMismatchError
from student.training import learner, loop, trainer
from student.training.objective import Objective
from student.training.run_log import RunLog, read_metrics
from student.training.trainer import train

# A run to the end, the hashes of its files, and its metrics.
Undisturbed = tuple[TrainConfig, dict[str, str], list[dict[str, Any]]]


class Stop(Exception):
    """The injected fault."""


@contextmanager
def stopped_at(step: int, signal_number: int | None = None) -> Iterator[None]:
    """Fails (or is sent a signal) in the place of a step, counted from 1 after the start or resume."""
    original, count = Objective.accumulate, iter(range(1, step))

    def accumulate(self: Objective, rows: Any) -> Any:
        if next(count, None) is None:
            if signal_number is None:
                raise Stop
            os.kill(os.getpid(), signal_number)
        return original(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Objective, "accumulate", accumulate)
        with pytest.raises(Stop if signal_number is None else KeyboardInterrupt):
            yield


@pytest.fixture(scope="module")
def undisturbed(cache: Cache, preset: str, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    out = tmp_path_factory.mktemp("undisturbed") / "student"
    config = TrainConfig(
        cache=cache.path, out=out, preset=preset, max_steps=8, checkpoint_every=3, evaluate_every=2,
        batch_blocks=4, batch_samples=4, batch_beams=2, device="cpu", quiet=True,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_LOG_EVERY", 1)
        train(config)
    return config, final_files(out), read_metrics(out)


def final_files(out: Path) -> dict[str, str]:
    """What a finished student consists of, without what only a resume or a reader of logs needs."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.iterdir())
        if path.name not in ("metrics.jsonl", "checkpoint.pt", "tensorboard")
    }


def without_timing(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All but what depends on the clock."""
    return [{k: v for k, v in line.items() if k not in ("tokens_per_second", "seconds")} for line in metrics]


def lines_of(metrics: list[dict[str, Any]]) -> Counter[tuple[int, str]]:
    return Counter((line["step"], "validation" if "validation" in line else "train") for line in metrics)


@pytest.fixture(autouse=True)
def log_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_LOG_EVERY", 1)


def test_an_undisturbed_run_logs_every_step_once(undisturbed: Undisturbed) -> None:
    config, files, metrics = undisturbed
    assert lines_of(metrics) == Counter(
        {**{(step, "train"): 1 for step in range(1, 9)}, **{(step, "validation"): 1 for step in (2, 4, 6, 8)}}
    )
    assert {"config.json", "model.safetensors", "tokenizer.json", "run.json"} <= files.keys()
    assert not [name for name in files if name.startswith(".")]
    first, last = metrics[0], metrics[-1]
    assert first.keys() == {
        "step", "soft_targets_nats", "labels_nats", "samples_nats", "beams_nats", "learning_rate", "gradient_norm",
        "tokens_per_second", "tokens_seen", "seconds",
    }  # fmt: skip
    assert last.keys() == {"step", "validation", "tokens_seen", "seconds"}
    seen = [line["tokens_seen"] for line in metrics if "validation" not in line]
    assert seen[0] > 0
    assert seen == sorted(set(seen))
    assert last["tokens_seen"] == seen[-1]
    assert last["validation"]["kl_nats"] < metrics[2]["validation"]["kl_nats"], "something is learnt"
    assert config.out.is_dir()


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


@pytest.mark.parametrize("max_gradient_norm", [1e9, 1e-3])
def test_the_gradient_norm_is_that_before_clipping(
    train_config: Callable[..., TrainConfig], cache: Cache, max_gradient_norm: float
) -> None:
    def gradients(bound: float) -> tuple[float, list[torch.Tensor]]:
        made = learner.make_learner(train_config(max_gradient_norm=bound), cache, torch.device("cpu"))
        rows = {kind: next(cache.record_batches(kind, "train")) for kind in ("soft_targets", "samples", "beams")}
        torch.manual_seed(0)  # dropout
        measures, _ = made.step(0, rows)
        return float(measures["gradient_norm"]), [p.grad for p in made.parallel.model.parameters()]

    _, unclipped = gradients(1e9)
    found, clipped = gradients(max_gradient_norm)
    truth = math.sqrt(sum(float(grad.double().square().sum()) for grad in unclipped))
    assert found == pytest.approx(truth, rel=1e-5)
    norm = math.sqrt(sum(float(grad.double().square().sum()) for grad in clipped))
    assert norm == pytest.approx(min(truth, max_gradient_norm), rel=1e-3)


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
        _fail_after(patch, f"{module}.{name}", calls)
        with pytest.raises(Stop):
            train(config)
    train(config)
    assert final_files(config.out) == files
    assert lines_of(read_metrics(config.out)) == lines_of(metrics)


def _fail_after(patch: pytest.MonkeyPatch, target: str, calls: int) -> None:
    from pkgutil import resolve_name

    original, count = resolve_name(target), iter(range(calls))

    def failing(*args: Any, **settings: Any) -> Any:
        if next(count, None) is None:
            raise Stop
        return original(*args, **settings)

    patch.setattr(target, failing)


@pytest.mark.parametrize("moved", [0, 1, 3])
def test_a_run_killed_while_it_publishes_the_student_ends_with_the_same_bytes(
    undisturbed: Undisturbed,
    tmp_path: Path,
    moved: int,
) -> None:
    config, files, _ = undisturbed
    config = dataclasses.replace(config, out=tmp_path / "student")
    with pytest.MonkeyPatch.context() as patch:
        _fail_after(patch, "pathlib.Path.replace", moved)
        with pytest.raises(Stop):
            train(config)
    assert not (config.out / "run.json").exists()
    train(config)
    assert final_files(config.out) == files


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
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


def test_a_finished_run_returns_at_once(undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch) -> None:
    config, files, metrics = undisturbed
    monkeypatch.setattr(trainer, "make_learner", None)
    assert train(config) == config.out
    assert final_files(config.out) == files
    assert read_metrics(config.out) == metrics


CHANGES: dict[str, dict[str, object]] = {
    "learning_rate": {"learning_rate": 1e-4},
    "max_steps": {"max_steps": 9},
    "seed": {"seed": 1},
    "batch_blocks": {"batch_blocks": 5},
    "mix": {"mix": MixConfig(labels=0.2)},
    "loss": {"loss": "jsd"},
    "dtype": {"dtype": "bfloat16"},
    "preset": {"preset": "mini"},
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_rerun_with_another_setting_is_refused_by_name(undisturbed: Undisturbed, field: str) -> None:
    config, files, _ = undisturbed
    with pytest.raises(RunMismatchError) as caught:
        train(dataclasses.replace(config, **CHANGES[field]))
    assert caught.value.field == field
    assert final_files(config.out) == files


def test_an_unfinished_run_refuses_other_settings_too_and_keeps_its_checkpoint(
    undisturbed: Undisturbed,
    tmp_path: Path,
) -> None:
    config = dataclasses.replace(undisturbed[0], out=tmp_path / "student")
    with stopped_at(5):
        train(config)
    before = (config.out / "checkpoint.pt").read_bytes()
    with pytest.raises(RunMismatchError) as caught:
        train(dataclasses.replace(config, learning_rate=1e-4))
    assert (caught.value.field, caught.value.found, caught.value.wanted) == ("learning_rate", 1e-3, 1e-4)
    assert (config.out / "checkpoint.pt").read_bytes() == before


def test_another_cache_is_refused(undisturbed: Undisturbed, bucketed_cache: Cache) -> None:
    with pytest.raises(RunMismatchError) as caught:
        train(dataclasses.replace(undisturbed[0], cache=bucketed_cache.path))
    assert caught.value.field == "cache_sha256"


def test_settings_that_do_not_change_the_weights_may_differ_in_a_resume(
    undisturbed: Undisturbed,
    cache: Cache,
    tmp_path: Path,
) -> None:
    config, files, _ = undisturbed
    first = dataclasses.replace(config, out=tmp_path / "student", evaluate_every=5)
    with stopped_at(5):
        train(first)
    moved = shutil.copytree(cache.path, tmp_path / "moved cache")
    out = Path(shutil.move(first.out, tmp_path / "moved student"))
    train(dataclasses.replace(first, out=out, cache=moved, quiet=False, device="auto", evaluate_every=1))
    assert final_files(out).keys() == files.keys()
    assert final_files(out)["model.safetensors"] == files["model.safetensors"]


def test_another_seed_gives_another_student(undisturbed: Undisturbed, tmp_path: Path) -> None:
    config, files, _ = undisturbed
    train(dataclasses.replace(config, out=tmp_path / "student", seed=1))
    assert final_files(tmp_path / "student")["model.safetensors"] != files["model.safetensors"]


def test_the_student_is_a_standard_directory(undisturbed: Undisturbed, cache: Cache, teacher_dir: Path) -> None:
    out = undisturbed[0].out
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    text = "the teacher ran once — and wrote it down.<|endoftext|>"
    assert tokenizer(text)["input_ids"] == AutoTokenizer.from_pretrained(teacher_dir)(text)["input_ids"]
    ids = torch.tensor([tokenizer("the teacher")["input_ids"]])
    assert model(ids).logits.shape == (1, 11, 257)
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 14)
    run = json.loads((out / "run.json").read_text())
    assert run["teacher"] == cache.identity.teacher
    assert run["length_penalty"] == 1.0


def test_whoever_may_read_one_file_of_a_student_may_read_all(undisturbed: Undisturbed) -> None:
    out = undisturbed[0].out
    modes = {path.name: path.stat().st_mode & 0o777 for path in out.iterdir() if path.is_file()}
    usual = out / "probe"
    usual.touch()
    assert set(modes.values()) == {usual.stat().st_mode & 0o777}
    usual.unlink()


def test_a_student_starts_from_a_checkpoint(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """One tiny step away from where it started."""
    start = undisturbed[0].out
    config = dataclasses.replace(
        undisturbed[0], out=tmp_path / "student", preset=str(start), max_steps=1, learning_rate=1e-9, weight_decay=0.0
    )
    train(config)
    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (start, config.out))
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-7, rtol=0)


@pytest.fixture
def copied_cache(cache: Cache, tmp_path: Path) -> Path:
    return shutil.copytree(cache.path, tmp_path / "cache")


def test_no_cache_an_unfinished_one_and_a_damaged_one(
    train_config: Callable[..., TrainConfig], copied_cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(NoCacheError):
        train(train_config(cache=tmp_path / "nothing"))
    shard = copied_cache / "soft_targets" / "train-00001-of-00004.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(HashMismatchError) as caught:
        train(train_config(cache=copied_cache))
    assert caught.value.path == str(shard)
    (copied_cache / "manifest.json").unlink()
    with pytest.raises(IncompleteCacheError):
        train(train_config(cache=copied_cache))
    assert not (tmp_path / "student" / "run.json").exists()


@pytest.mark.parametrize(
    ("spoil", "settings", "error"),
    [
        ("damage", {}, HashMismatchError),
        ("remove", {}, MissingFileError),
        (None, {"mix": MixConfig(beams=1.0)}, MissingKindError),
    ],
)
def test_a_cache_that_cannot_be_used_leaves_nothing(
    make_cache: Callable[..., Cache],
    train_config: Callable[..., TrainConfig],
    tmp_path: Path,
    spoil: str | None,
    settings: dict[str, object],
    error: type[Exception],
) -> None:
    cache = shutil.copytree(make_cache(kinds=("soft_targets", "samples")).path, tmp_path / "copy")
    shard = cache / "samples" / "train-00000-of-00001.arrow"
    if spoil == "damage":
        shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    elif spoil == "remove":
        shard.unlink()
    config = train_config(cache=cache, out=tmp_path / "runs" / "student", **settings)
    with pytest.raises(error):
        train(config)
    assert not (tmp_path / "runs").exists()


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


@pytest.mark.parametrize("first_nan", [1, 4, 5, 8])
def test_a_run_that_diverges_stops_with_its_last_sound_checkpoint(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_nan: int
) -> None:
    """It checkpoints every 3 steps and logs every 4."""
    monkeypatch.setattr(loop, "_LOG_EVERY", 4)
    config = dataclasses.replace(undisturbed[0], out=tmp_path / "student", evaluate_every=100)
    original = learner.Learner.step

    def step(self: learner.Learner, step: int, rows: Any) -> Any:
        measures, num_tokens = original(self, step, rows)
        return measures | ({"gradient_norm": torch.tensor(math.nan)} if step + 1 == first_nan else {}), num_tokens

    with monkeypatch.context() as patch:
        patch.setattr(learner.Learner, "step", step)
        for _ in range(2):  # nor does it go on when it is run again
            with pytest.raises(DivergedError, match=r"below 0\.001") as caught:
                train(config)
            assert caught.value.step == {1: 3, 4: 4, 5: 6, 8: 8}[first_nan]
    assert "NaN" not in (config.out / "metrics.jsonl").read_text()
    assert (config.out / "checkpoint.pt").exists() is (first_nan > 3)
    train(config)
    assert final_files(config.out)["model.safetensors"] == undisturbed[1]["model.safetensors"]


def test_held_out_figures_that_are_no_numbers_are_a_divergence_too(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(undisturbed[0], out=tmp_path / "student", evaluate_every=2)
    monkeypatch.setattr(loop, "evaluate_model", lambda *args, **settings: {"kl_nats": math.inf, "perplexity": None})
    with pytest.raises(DivergedError):
        train(config)
    assert [line["step"] for line in read_metrics(config.out)] == [1, 2]


def test_two_runs_do_not_share_a_directory(train_config: Callable[..., TrainConfig]) -> None:
    config = train_config()
    with only_writer(config.out, "train"), pytest.raises(ConfigError, match="another train"):
        train(config)
    assert not config.out.exists()


def test_an_out_that_is_no_directory(train_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "student"):
        with pytest.raises(ConfigError, match="not a directory"):
            train(train_config(out=out))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_cache_without_validation_trains(
    helpers: ModuleType,
    teacher_dir: Path,
    text_file: Path,
    train_config: Callable[..., TrainConfig],
    tmp_path: Path,
) -> None:
    made = helpers.precomputed(
        helpers.tiny_config(teacher_dir, text_file, tmp_path / "cache", validation_fraction=0.0, max_tokens=2000)
    )
    train(train_config(cache=made.path, max_steps=2))
    [last] = [line for line in read_metrics(tmp_path / "student") if "validation" in line]
    assert last["validation"]["perplexity"] is None


def test_the_log_drops_lines_after_the_checkpoint_and_half_a_line(tmp_path: Path) -> None:
    lines = [{"step": 1, "a": 1}, {"step": 2, "a": 2}, {"step": 2, "validation": {}}, {"step": 3, "a": 3}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 4, "a"')
    assert read_metrics(tmp_path) == lines
    log = RunLog(tmp_path, 2)
    assert read_metrics(tmp_path) == lines[:3]
    log.write(3, a=30)
    assert read_metrics(tmp_path) == [*lines[:3], {"step": 3, "a": 30}]
    assert read_metrics(tmp_path / "nothing") == []


WRONG_SETTINGS: list[dict[str, object]] = [
    {"max_steps": 0}, {"batch_blocks": 0}, {"batch_samples": 0}, {"batch_beams": 0}, {"micro_batches": 0},
    {"evaluate_every": 0}, {"checkpoint_every": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")},
    {"warmup_steps": -1}, {"temperature": 0.0}, {"selection_temperature": 0.0}, {"beta2": 1.0}, {"beta2": -0.1},
    {"max_gradient_norm": 0.0}, {"weight_decay": -1.0}, {"out": Path("s3://bucket/student")},
    {"local_cache_dir": Path("s3://bucket/copy")},
]  # fmt: skip


@pytest.mark.parametrize("settings", WRONG_SETTINGS, ids=str)
def test_runs_that_cannot_be_made(train_config: Callable[..., TrainConfig], settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        train_config(**settings)


@pytest.mark.parametrize(
    "weights", [{"labels": -0.1}, {"samples": -1.0}, {"soft_targets": 0.0, "samples": 0.0, "beams": 0.0, "labels": 0.0}]
)
def test_mixes_that_learn_nothing(weights: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        MixConfig(**weights)


def test_an_evaluation_of_no_blocks_at_a_time() -> None:
    with pytest.raises(ConfigError):
        EvaluateConfig(student=Path("s"), cache=Path("c"), batch_blocks=0)


def test_an_incomplete_cache_trains_on_what_is_committed_and_resumes_on_the_same(
    undisturbed: Undisturbed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, _, _ = undisturbed
    part = shutil.copytree(config.cache, tmp_path / "cache")
    manifest = (part / "manifest.json").read_bytes()
    (part / "manifest.json").unlink()
    shards = sorted(path for path in (part / "commits").iterdir() if "train" in path.name)
    taken = {path: path.read_bytes() for path in shards[::3]}
    for path in taken:
        path.unlink()
    config = dataclasses.replace(config, cache=part, out=tmp_path / "student")
    with pytest.raises(IncompleteCacheError):
        train(config)
    incomplete = dataclasses.replace(config, allow_incomplete=True)
    expected = final_files(train(dataclasses.replace(incomplete, out=tmp_path / "expected")))
    num_planned = sum(1 for path in (part / "commits").iterdir()) + len(taken)
    assert f"training on {num_planned - len(taken)} of {num_planned} shards" in capsys.readouterr().err
    with stopped_at(5):
        train(incomplete)
    # Precompute goes on meanwhile: one more shard, then all.
    first, *rest = taken
    first.write_bytes(taken[first])
    with stopped_at(2):
        train(incomplete)
    for path in rest:
        path.write_bytes(taken[path])
    (part / "manifest.json").write_bytes(manifest)
    train(config)
    assert final_files(config.out) == expected


def test_a_cache_at_a_url_trains_the_same_student(undisturbed: Undisturbed, tmp_path: Path) -> None:
    config, files, _ = undisturbed
    remote = dataclasses.replace(
        config, cache=f"file://{config.cache}", out=tmp_path / "student", local_cache_dir=tmp_path / "local"
    )
    with stopped_at(4):
        train(remote)
    train(remote)
    assert final_files(remote.out) == files
    assert list((tmp_path / "local").rglob("*.arrow"))


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


@pytest.mark.parametrize(
    ("temperature", "loss", "is_told"), [(1.0, "forward_kl", True), (2.0, "forward_kl", False), (1.0, "jsd", False)]
)
def test_draws_of_another_temperature_are_told_of(
    make_cache: Callable[..., Cache],
    train_config: Callable[..., TrainConfig],
    capsys: pytest.CaptureFixture[str],
    temperature: float,
    loss: str,
    is_told: bool,
) -> None:
    settings = SoftTargetsConfig(top_k=4, tail_weight=0.05, temperatures=(2.0,))
    cache = make_cache(kinds=("soft_targets",), soft_targets=settings)
    capsys.readouterr()
    train(train_config(cache=cache.path, temperature=temperature, loss=loss, max_steps=1))
    said = f"{cache.path}: the tail was drawn at temperature 2 and counts as one mass at --temperature 1\n"
    assert (said in capsys.readouterr().err) is is_told
