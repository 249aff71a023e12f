"""A rerun with another setting, teacher, text or tokenizer is refused by the name of the field."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from pipeline import PrecomputeConfig, SamplesConfig, SoftTargetsConfig, precompute
from storage import Cache
from storage.errors import CacheMismatchError

Snapshot = Callable[[Path], dict[str, str]]


CHANGES: dict[str, dict[str, object]] = {
    "config.seed": {"seed": 1},
    "block_size": {"block_size": 31},
    "config.shard_tokens": {"shard_tokens": 500},
    "config.validation_fraction": {"validation_fraction": 0.3},
    "config.document_separator": {"document_separator": "\n\n"},
    "config.max_tokens": {"max_tokens": 2000},
    "config.soft_targets.top_k": {
        "soft_targets": SoftTargetsConfig(top_k=5, tail_weight=0.05, temperatures=(1.0, 2.0))
    },
    "config.soft_targets.temperatures": {"soft_targets": SoftTargetsConfig(top_k=4, tail_weight=0.05)},
    "config.samples.top_p": {
        "samples": SamplesConfig(num_prompts=8, per_prompt=3, prompt_tokens=5, max_new_tokens=5, top_p=0.9)
    },
    "kinds": {"kinds": ("soft_targets", "samples")},
    "teacher.dtype": {"dtype": "bfloat16"},
}  # fmt: skip


@pytest.mark.parametrize("field", CHANGES)
def test_a_rerun_with_another_setting_is_refused_by_name_and_keeps_the_cache(
    configure: Callable[..., PrecomputeConfig], finished: Cache, snapshot: Snapshot, field: str
) -> None:
    before = snapshot(finished.path)
    with pytest.raises(CacheMismatchError) as caught:
        precompute(configure(finished.path, **CHANGES[field]))
    assert caught.value.field == field
    assert caught.value.found != caught.value.wanted
    shutil.rmtree(finished.path / ".work", ignore_errors=True)
    assert snapshot(finished.path) == before


@pytest.mark.parametrize("field", ["block_size", "config.seed", "teacher.dtype", "kinds"])
def test_another_setting_is_refused_before_the_text_is_read(
    configure: Callable[..., PrecomputeConfig], finished: Cache, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    monkeypatch.setattr("pipeline.job.tokenize_as_planned", None)
    with pytest.raises(CacheMismatchError) as caught:
        precompute(configure(finished.path, **CHANGES[field]))
    assert caught.value.field == field


def test_a_refused_rerun_leaves_no_work_files_in_a_finished_cache(
    configure: Callable[..., PrecomputeConfig], copied: Path, snapshot: Snapshot
) -> None:
    before = snapshot(copied)
    with pytest.raises(CacheMismatchError):
        precompute(configure(copied, seed=1))
    assert snapshot(copied).keys() == before.keys()


def test_a_rerun_with_another_teacher_is_refused(
    configure: Callable[..., PrecomputeConfig], helpers: ModuleType, copied: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    other = helpers.make_teacher(tmp_path / teacher_dir.name, seed=1)
    with pytest.raises(CacheMismatchError) as caught:
        precompute(configure(copied, teacher=str(other)))
    assert caught.value.field == "teacher.weights_sha256"


def test_a_rerun_with_other_data_is_refused(
    configure: Callable[..., PrecomputeConfig], helpers: ModuleType, copied: Path, tmp_path: Path
) -> None:
    data = tmp_path / "documents.txt"
    data.write_text("".join(helpers.make_text(30, seed=4)))
    with pytest.raises(CacheMismatchError) as caught:
        precompute(configure(copied, data=str(data)))
    assert caught.value.field == "data.fingerprint"


def test_a_rerun_with_another_tokenizer_is_refused(
    configure: Callable[..., PrecomputeConfig], copied: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(teacher_dir, tmp_path / teacher_dir.name)
    settings = json.loads((other / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{{ messages }}"
    (other / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CacheMismatchError) as caught:
        precompute(configure(copied, teacher=str(other)))
    assert caught.value.field == "tokenizer.sha256"


def test_settings_that_do_not_change_the_rows_may_differ(
    configure: Callable[..., PrecomputeConfig], copied: Path, snapshot: Snapshot, teacher_dir: Path, tmp_path: Path
) -> None:
    before = snapshot(copied)
    moved = shutil.copytree(teacher_dir, tmp_path / "elsewhere" / teacher_dir.name)
    precompute(configure(copied, teacher=str(moved), quiet=False, device="auto"))
    assert snapshot(copied) == before
