"""Shared by the tests of training: an undisturbed run."""

from __future__ import annotations

import pytest

from storage import Cache
from student import TrainConfig
from student.training import loop
from student.training.run_log import read_metrics
from student.training.trainer import train
from tests.student.training.runs import Undisturbed, final_files


@pytest.fixture(scope="session")
def undisturbed(cache: Cache, preset: str, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """A run of eight steps of every kind, with dropout; tests that go on with it copy it first."""
    out = tmp_path_factory.mktemp("undisturbed") / "student"
    config = TrainConfig(
        cache=cache.path, out=out, preset=preset, max_steps=8, checkpoint_every=3, evaluate_every=2,
        batch_blocks=4, batch_samples=4, batch_beams=2, dropout=0.1, device="cpu", quiet=True,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_LOG_EVERY", 1)
        train(config)
    return config, final_files(out), read_metrics(out)


@pytest.fixture
def log_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log every step."""
    monkeypatch.setattr(loop, "_LOG_EVERY", 1)
