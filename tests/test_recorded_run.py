"""A small run from text to a student's own text makes what it made when it was recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.recorded_run import RECORDED, run


def assert_alike(found: Any, recorded: Any, where: str) -> None:
    """Equal, but for the last digits of floats, which differ from processor to processor."""
    if isinstance(recorded, dict):
        assert found.keys() == recorded.keys(), where
        for name, value in recorded.items():
            assert_alike(found[name], value, f"{where}/{name}")
    elif isinstance(recorded, list):
        assert len(found) == len(recorded), where
        for index, value in enumerate(recorded):
            assert_alike(found[index], value, f"{where}/{index}")
    elif isinstance(recorded, float):
        assert found == pytest.approx(recorded, rel=1e-4, abs=1e-6), where
    else:
        assert found == recorded, where


def test_what_a_run_makes_is_what_was_recorded(tmp_path: Path) -> None:
    found = json.loads(json.dumps(run(tmp_path)))
    assert_alike(found, json.loads(RECORDED.read_text()), "")
