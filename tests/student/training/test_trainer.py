"""Training: what a run logs and leaves, what it starts from, and what it does with a cache that it cannot use."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
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
from student import MixConfig, TrainConfig
from student.errors import DivergedError
from student.training import learner, loop, trainer
from student.training.run_log import read_metrics
from student.training.trainer import train
from tests.other_users import give_away, without_rights
from tests.storage.sharing.merges import refusing
from tests.student.training.runs import Undisturbed, final_files, lines_of, stopped_at

pytestmark = pytest.mark.usefixtures("log_every_step")


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


def test_a_finished_run_returns_at_once(undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch) -> None:
    config, files, metrics = undisturbed
    monkeypatch.setattr(trainer, "make_learner", None)
    assert train(config) == config.out
    assert final_files(config.out) == files
    assert read_metrics(config.out) == metrics


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_finished_run_that_cannot_be_written_is_finished(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    config, files, _ = undisturbed
    out = shutil.copytree(config.out, tmp_path / "student")
    (out / "checkpoint.pt").touch()  # of a run that was killed after its last file
    give_away(out)
    if code == errno.EROFS:
        monkeypatch.setattr(Path, "unlink", refusing(code))
    with without_rights():
        assert train(dataclasses.replace(config, out=out)) == out
    assert final_files(out).items() >= files.items()


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
