"""Each recipe ends with the weights of teachonce-student train, in one go and when it is stopped."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.places import ROOT
from tests.scripts.loops.conftest import SAVE_EVERY
from tests.scripts.loops.watching import LOSSES, Rows, Stop, watched

PACKAGES = {
    "plain": (),
    "with_accelerate": ("accelerate",),
    "with_lightning": ("lightning",),
    "with_trainer": ("accelerate",),
    "with_trl": ("accelerate", "trl"),
}


@pytest.fixture(params=PACKAGES)
def recipe(request: pytest.FixtureRequest) -> Iterator[str]:
    for package in PACKAGES[request.param]:
        pytest.importorskip(package)
    yield request.param
    if "accelerate" in PACKAGES[request.param]:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def settings(settings_for: Callable[[Path], dict[str, Any]], tmp_path: Path) -> dict[str, Any]:
    return settings_for(tmp_path / "out")


def train(recipe: str, settings: dict[str, Any]) -> None:
    importlib.import_module(f"scripts.loops.{recipe}").train(**settings)


def test_a_recipe_ends_with_the_weights_of_train(
    recipe: str, settings: dict[str, Any], ours: Path, start: Path, assert_same_weights: Callable[..., None]
) -> None:
    train(recipe, settings)
    assert_same_weights(settings["out"], ours)
    with pytest.raises(AssertionError):
        assert_same_weights(start, ours)


def test_a_stopped_recipe_goes_on_after_its_last_checkpoint(
    recipe: str,
    settings: dict[str, Any],
    rows_of_steps: list[Rows],
    ours: Path,
    assert_same_weights: Callable[..., None],
) -> None:
    with watched(recipe, stop_at_step=5) as steps, pytest.raises(Stop):
        train(recipe, settings)
    assert steps == rows_of_steps[:5]
    with watched(recipe) as steps:
        train(recipe, settings)
    assert steps == rows_of_steps[SAVE_EVERY:]
    assert_same_weights(settings["out"], ours)


def test_every_recipe_is_tried_and_short() -> None:
    files = {path.stem: path for path in (ROOT / "scripts" / "loops").glob("*.py")}
    recipes = files.keys() - {"__init__", "__main__", "shared"}
    assert recipes == PACKAGES.keys() == LOSSES.keys()
    for name in recipes:
        assert len(files[name].read_text().splitlines()) < 40, name
