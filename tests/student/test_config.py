"""Settings that make no run are refused when they are made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from storage.errors import ConfigError
from student import EvaluateConfig, MixConfig, TrainConfig

WRONG_SETTINGS: list[dict[str, object]] = [
    {"max_steps": 0}, {"batch_blocks": 0}, {"batch_samples": 0}, {"batch_beams": 0}, {"micro_batches": 0},
    {"evaluate_every": 0}, {"checkpoint_every": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")},
    {"warmup_steps": -1}, {"temperature": 0.0}, {"selection_temperature": 0.0}, {"beta2": 1.0}, {"beta2": -0.1},
    {"max_gradient_norm": 0.0}, {"weight_decay": -1.0}, {"out": Path("s3://bucket/student")},
    {"local_cache_dir": Path("s3://bucket/copy")},
]  # fmt: skip


@pytest.mark.parametrize("settings", WRONG_SETTINGS, ids=str)
def test_runs_that_cannot_be_made(train_config: Callable[..., TrainConfig], settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        train_config(**settings)


@pytest.mark.parametrize(
    "weights", [{"labels": -0.1}, {"samples": -1.0}, {"soft_targets": 0.0, "samples": 0.0, "beams": 0.0, "labels": 0.0}]
)
def test_mixes_that_learn_nothing(weights: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        MixConfig(**weights)


def test_an_evaluation_of_no_blocks_at_a_time() -> None:
    with pytest.raises(ConfigError):
        EvaluateConfig(student=Path("s"), cache=Path("c"), batch_blocks=0)
