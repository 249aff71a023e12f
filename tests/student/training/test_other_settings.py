"""Only a run with the same settings resumes; a setting that does not change the weights may differ."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from storage import Cache
from student import MixConfig
from student.errors import RunMismatchError
from student.training.trainer import train
from tests.student.training.runs import Undisturbed, final_files, stopped_at

pytestmark = pytest.mark.usefixtures("log_every_step")


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
