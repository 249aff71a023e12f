"""Shared by the tests of evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage import Cache
from student import EvaluateConfig, evaluate


@pytest.fixture
def evaluated(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """All measures of a model that is saved first."""

    def run(model: Any, cache: Cache, **changes: object) -> dict[str, Any]:
        model.save_pretrained(tmp_path / "model")
        settings: dict[str, Any] = {"student": tmp_path / "model", "cache": cache.path, "device": "cpu", "quiet": True}
        return evaluate(EvaluateConfig(**(settings | changes)))

    return run
