"""Two trained students, one of them on plain text alone, and a report's parts made of them once."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage import Cache
from student import MixConfig, TrainConfig, train
from student.config import ReportConfig


@pytest.fixture(scope="session")
def student_dirs(cache: Cache, preset: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Thirty steps each: a student, and the same shape on plain text."""
    directory = tmp_path_factory.mktemp("students")
    mixes = {"student": MixConfig(), "plain": MixConfig(soft_targets=0, samples=0, beams=0, labels=1)}
    return [
        train(
            TrainConfig(
                cache=cache.path, out=directory / name, preset=preset, max_steps=30, batch_blocks=4, batch_samples=4,
                batch_beams=2, evaluate_every=10, mix=mix, device="cpu", quiet=True,
            )
        )
        for name, mix in mixes.items()
    ]  # fmt: skip


@pytest.fixture(scope="session")
def report_config(cache: Cache, student_dirs: list[Path]) -> ReportConfig:
    return ReportConfig(
        students=tuple(student_dirs), cache=cache.path, out=Path("report.html"), num_prompts=3, device="cpu", quiet=True
    )
