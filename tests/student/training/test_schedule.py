"""The learning rate at the steps where it turns, and who is decayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from student import TrainConfig
from student.training.schedule import learning_rate, make_optimizer


def test_the_rate_at_the_beginning_the_peak_the_middle_and_the_end(train_config: Callable[..., TrainConfig]) -> None:
    config = train_config(max_steps=110, warmup_steps=10, learning_rate=2e-3)
    assert learning_rate(0, config) == pytest.approx(2e-4)
    assert learning_rate(4, config) == pytest.approx(1e-3)
    assert learning_rate(9, config) == learning_rate(10, config) == pytest.approx(2e-3)
    assert learning_rate(60, config) == pytest.approx((2e-3 + 2e-4) / 2)
    assert learning_rate(110, config) == pytest.approx(2e-4)
    rates = [learning_rate(step, config) for step in range(10, 111)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(("max_steps", "expected"), [(1, 1), (8, 1), (100, 5), (1000, 50)])
def test_the_default_warm_up_is_a_twentieth(
    train_config: Callable[..., TrainConfig], max_steps: int, expected: int
) -> None:
    config = train_config(max_steps=max_steps, learning_rate=1.0)
    rates = [learning_rate(step, config) for step in range(expected)]
    assert rates == pytest.approx([(step + 1) / expected for step in range(expected)])
    if max_steps > expected:
        assert learning_rate(expected, config) == 1.0
        assert learning_rate(expected + 1, config) < 1.0


@pytest.mark.parametrize("warmup_steps", [0, 8, 100])
def test_odd_warm_ups_keep_the_rate_between_nothing_and_the_peak(
    train_config: Callable[..., TrainConfig], warmup_steps: int
) -> None:
    config = train_config(max_steps=8, warmup_steps=warmup_steps, learning_rate=1.0)
    rates = [learning_rate(step, config) for step in range(8)]
    assert all(0 < rate <= 1 for rate in rates)
    if warmup_steps == 0:
        assert rates[0] == 1.0


def test_matrices_are_decayed_and_vectors_are_not(
    train_config: Callable[..., TrainConfig], make_student: Callable[..., Any]
) -> None:
    model = make_student()
    optimizer = make_optimizer(model, train_config(weight_decay=0.3, beta2=0.9))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {id(p): 0.3 if p.dim() >= 2 else 0.0 for p in model.parameters()}
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.9)}
