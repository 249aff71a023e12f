"""Recipes in several processes: two end with the weights of train, and three go on where one was stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.places import ROOT
from tests.scripts.loops.conftest import BATCH_ROWS, SAVE_EVERY
from tests.scripts.loops.watching import Rows


@pytest.fixture(scope="module")
def directory(settings_for: Callable[[Path], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("accelerate")
    out = tmp_path_factory.mktemp("processes")
    code = "import runpy; runpy.run_module('tests.scripts.loops.forked', run_name='__main__', alter_sys=True)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out), json.dumps(settings_for(out))],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def rows_of(directory: Path, run: str, world_size: int) -> list[Rows]:
    """The rows of every step, put together from those of all ranks: rank r has rows r, r + world_size, …"""
    ranks = [json.loads((directory / f"rows-{run}-{rank}.json").read_text()) for rank in range(world_size)]
    steps = zip(*ranks, strict=True)
    return [[parts[i % world_size][i // world_size] for i in range(BATCH_ROWS)] for parts in steps]


@pytest.mark.parametrize("run", ["two", "trainer"])
def test_two_processes_end_with_the_weights_of_train(
    directory: Path, run: str, rows_of_steps: list[Rows], ours: Path, assert_same_weights: Callable[..., None]
) -> None:
    assert rows_of(directory, run, 2) == rows_of_steps
    assert_same_weights(directory / run, ours)


def test_three_processes_go_on_where_one_was_stopped(
    directory: Path, rows_of_steps: list[Rows], ours: Path, assert_same_weights: Callable[..., None]
) -> None:
    assert rows_of(directory, "stopped", 1) == rows_of_steps[:5]
    assert rows_of(directory, "resumed", 3) == rows_of_steps[SAVE_EVERY:]
    assert_same_weights(directory / "resumed", ours)
