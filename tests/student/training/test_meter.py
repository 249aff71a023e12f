"""Counting steps, tokens and seconds: by a clock of the test's own, and over a checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from student.training import meter
from student.training.meter import Meter


class Clock:
    now = 50.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meter, "time", clock)
    return clock


def losses(*values: float, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {name: torch.tensor(value, dtype=dtype) for name, value in zip("ab", values, strict=True)}


def test_means_and_speed_of_the_steps_since_the_last_reading(clock: Clock) -> None:
    counts = Meter()
    for a, b, num_tokens in ((1.0, 10.0, 100), (2.0, 30.0, 300)):
        clock.now += 2
        counts.add_step(losses(a, b), num_tokens)
    assert counts.read() == {"a": 1.5, "b": 20.0, "tokens_per_second": 100.0}
    clock.now += 1
    counts.add_step(losses(5.0, 6.0), 70)
    assert counts.read() == {"a": 5.0, "b": 6.0, "tokens_per_second": 70.0}
    assert counts.totals() == {"tokens_seen": 470, "seconds": 5.0}


def test_an_evaluation_between_steps_takes_time_but_makes_no_step_slower_or_faster(clock: Clock) -> None:
    counts = Meter()
    for _ in range(2):
        clock.now += 2
        counts.add_step(losses(1.0, 1.0), 100)
        clock.now += 100
        assert counts.totals()["seconds"] == clock.now - 50
    assert counts.read()["tokens_per_second"] == 50.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_meter_from_a_checkpoint_counts_on_to_the_same_last_digit(clock: Clock, dtype: torch.dtype) -> None:
    values = torch.randn(7, 2, generator=torch.Generator().manual_seed(0)).tolist()
    whole, parts = Meter(), Meter()
    for step, pair in enumerate(values):
        clock.now += 1
        for counts in (whole, parts):
            counts.add_step(losses(*pair, dtype=dtype), 10)
        if step in (1, 4):
            state = parts.state()
            assert all(type(value) is float for value in state["sums"].values())
            clock.now += 1000  # the run stands still
            whole.pass_time()
            parts = Meter(**state)
    assert parts.totals() == {"tokens_seen": 70, "seconds": 7.0}
    assert parts.read() == whole.read()
