"""Only a run with the same settings resumes; a setting that does not change the weights may differ."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from storage import Cache
from student import MixConfig, TrainConfig
from student.config import LoraConfig
from student.errors import CheckpointError, NoSuchStudentError, PresetChangedError, RunMismatchError
from student.training.trainer import train
from tests.student.training.runs import Undisturbed, final_files, stopped_at

pytestmark = pytest.mark.usefixtures("log_every_step")


CHANGES: dict[str, dict[str, object]] = {
    "learning_rate": {"learning_rate": 1e-4},
    "max_steps": {"max_steps": 9},
    "seed": {"seed": 1},
    "batch_blocks": {"batch_blocks": 5},
    "dropout": {"dropout": 0.2},
    "lora": {"lora": LoraConfig(rank=2)},
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


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("change", [{"n_head": 4}, {"n_embd": 32}, {"embd_pdrop": 0.0}])
@pytest.mark.parametrize("is_finished", [False, True])
def test_a_config_edited_in_place_is_refused_before_anything_is_touched(
    train_config: Callable[..., TrainConfig], preset: str, tmp_path: Path, change: dict[str, Any], is_finished: bool
) -> None:
    edited = Path(shutil.copy(preset, tmp_path / "edited.json"))
    config = train_config(preset=str(edited), max_steps=3)
    if is_finished:
        train(config)
    else:
        with stopped_at(2, signal.SIGTERM):
            train(config)
    before = files_of(config.out)
    edited.write_text(json.dumps(json.loads(edited.read_text()) | change))
    with pytest.raises(PresetChangedError, match=r"what --preset .*edited\.json held then is not what") as caught:
        train(config)
    assert "\n" not in str(caught.value)
    assert files_of(config.out) == before
    # As it was but for spelling: the same run.
    edited.write_text(json.dumps(json.loads(Path(preset).read_text()) | {"n_inner": None}, indent=3, sort_keys=True))
    train(config)


def test_the_same_config_by_another_path_is_the_same_run(undisturbed: Undisturbed, preset: str, tmp_path: Path) -> None:
    config, files, _ = undisturbed
    config = dataclasses.replace(config, out=tmp_path / "student")
    with stopped_at(5):
        train(config)
    other = dataclasses.replace(config, preset=str(shutil.copy(preset, tmp_path / "other.json")))
    train(other)
    assert final_files(config.out)["model.safetensors"] == files["model.safetensors"]
    train(config)  # finished: by either path
    Path(other.preset).unlink()
    train(other)  # and where nothing is any more, by its name


@pytest.mark.parametrize("spoiled", ["config.json", "model.safetensors", None])
def test_a_checkpoint_that_a_run_starts_from_counts_by_its_content(
    undisturbed: Undisturbed, tmp_path: Path, spoiled: str | None
) -> None:
    start = shutil.copytree(undisturbed[0].out, tmp_path / "start")
    config = dataclasses.replace(undisturbed[0], out=tmp_path / "student", preset=str(start), max_steps=4)
    with stopped_at(4):
        train(config)
    moved = start.rename(tmp_path / "moved")
    config = dataclasses.replace(config, preset=str(moved))
    (moved / "run.json").write_text("{}")  # decides nothing
    if spoiled is None:
        train(config)
        return
    content = bytearray((moved / spoiled).read_bytes())
    content[-9] ^= 1
    (moved / spoiled).write_bytes(content)
    with pytest.raises((PresetChangedError, NoSuchStudentError)):
        train(config)


def test_a_checkpoint_of_other_tensors_is_refused_where_its_run_noted_no_content(
    train_config: Callable[..., TrainConfig], preset: str, tmp_path: Path
) -> None:
    edited = Path(shutil.copy(preset, tmp_path / "edited.json"))
    config = train_config(preset=str(edited))
    with stopped_at(4, signal.SIGTERM):
        train(config)
    state = torch.load(config.out / "checkpoint.pt", weights_only=True)
    del state["run"]["preset_sha256"]
    torch.save(state, config.out / "checkpoint.pt")
    edited.write_text(json.dumps(json.loads(edited.read_text()) | {"n_embd": 32}))
    with pytest.raises(CheckpointError, match="its tensors are not those of the student that --preset describes"):
        train(config)
