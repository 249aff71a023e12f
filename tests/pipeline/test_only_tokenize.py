"""--only tokenize: the tokens of a run, made where there is neither a GPU nor the teacher's weights."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline import PrecomputeConfig, precompute
from pipeline.corpus.parts import sharing
from pipeline.run import tokenize_only
from pipeline.teacher.loading import load_reader, load_teacher
from storage import Cache
from storage.errors import ConfigError
from storage.tensors.model_facts import vocab_size_of
from tests.odd_models import MODELS, make_model

Snapshot = Callable[[Path], dict[str, str]]


@pytest.fixture
def without_weights(teacher_dir: Path, tmp_path: Path) -> Path:
    """The teacher's directory under its name, without its weights."""
    leave_out = shutil.ignore_patterns("*.safetensors")
    return shutil.copytree(teacher_dir, tmp_path / "bare" / teacher_dir.name, ignore=leave_out)


@pytest.mark.parametrize("is_url", [False, True])
def test_a_run_goes_on_from_the_tokens_and_makes_the_same_cache(
    configure: Callable[..., PrecomputeConfig], finished: Cache, without_weights: Path, tmp_path: Path,
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, is_url: bool,
) -> None:  # fmt: skip
    out = f"file://{tmp_path}/cache" if is_url else tmp_path / "cache"
    config = configure(out, work_dir=tmp_path / "work" if is_url else None)
    line = tokenize_only(dataclasses.replace(config, teacher=str(without_weights), only="tokenize"))
    place = next((tmp_path / "work").iterdir()) if is_url else tmp_path / "cache" / ".work"
    assert line.startswith(f"tokenized into {place}: train ")
    assert line.endswith("the same line without --only runs the teacher on them")
    assert list(place.glob("*/counts.json"))
    assert not list(place.glob("*-parts"))
    monkeypatch.setattr(sharing, "write_part", None)
    precompute(config)
    assert snapshot(tmp_path / "cache") == snapshot(finished.path)
    assert tokenize_only(config) == f"{out}: complete, there is nothing to tokenize"


def test_tokens_of_an_interrupted_run_stay(
    configure: Callable[..., PrecomputeConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.run.begin", interrupted)
    with pytest.raises(KeyboardInterrupt):
        precompute(configure(tmp_path / "cache"))
    assert list((tmp_path / "cache" / ".work").glob("*/counts.json"))
    monkeypatch.setattr("pipeline.run.lay_out", interrupted)
    with pytest.raises(KeyboardInterrupt):
        precompute(configure(tmp_path / "other"))
    assert not (tmp_path / "other").exists(), "without tokens there is nothing to keep"


def test_sizes_come_from_the_configuration_as_from_the_teacher(
    configure: Callable[..., PrecomputeConfig], without_weights: Path, tmp_path: Path
) -> None:
    reader = load_reader(configure(tmp_path, teacher=str(without_weights)))
    teacher = load_teacher(configure(tmp_path))
    assert (reader.vocab_size, reader.context_length) == (teacher.vocab_size, teacher.context_length)


@pytest.mark.parametrize("name", MODELS)
def test_the_ids_of_a_model_are_counted_without_a_pass(name: str) -> None:
    model = make_model(name)
    with torch.inference_mode():
        logits = model(input_ids=torch.zeros((1, 2), dtype=torch.int64), use_cache=False).logits
    assert vocab_size_of(model) == logits.shape[-1]


def test_only_and_plan_exclude_each_other(configure: Callable[..., PrecomputeConfig], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--only and --plan exclude each other"):
        configure(tmp_path, only="tokenize", plan=True)
