"""Counts and times of a run. Checkpoints hold them, so that the log of a resumed run continues the counts."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from student.processes import Processes


@dataclass(kw_only=True)
class Meter:
    """Counts since the run's first step, and sums over the steps since the last `read`.

    All processes call `read`, `state` and `is_finite`.
    """

    tokens_seen: int = 0
    """Tokens that the student has read in training."""
    seconds: float = 0.0
    """Seconds spent on steps, evaluations and checkpoints, without pauses and without work that a kill lost."""
    sums: dict[str, Any] = field(default_factory=dict)
    """Sum of each measure over the steps since the last `read`. The sums are tensors, so that a step need not wait for
    its own figures."""
    num_steps: int = 0
    num_measured: dict[str, int] = field(default_factory=dict)
    """Number of those steps that have the measure. A step whose rows have no wanted target has no loss for them."""
    num_tokens: int = 0
    step_seconds: float = 0.0
    processes: Processes = field(default_factory=Processes)
    """The processes of the run. Each sums its own shares of the measures."""

    def __post_init__(self) -> None:
        self._mark = time.perf_counter()
        if not self.num_measured:  # in checkpoints of an earlier teachonce, every step has every measure
            self.num_measured = dict.fromkeys(self.sums, self.num_steps)
        if not self.processes.is_first:
            self.sums = dict.fromkeys(self.sums, 0.0)  # a checkpoint holds the sums over processes

    def add_step(self, measures: dict[str, Tensor], num_tokens: int) -> None:
        """Count a step. It lasted since the last call of this or of `pass_time`."""
        for name, value in measures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.num_measured[name] = self.num_measured.get(name, 0) + 1
        self.num_steps += 1
        self.num_tokens += num_tokens
        self.tokens_seen += num_tokens
        self.step_seconds += self.pass_time()

    def pass_time(self) -> float:
        """Add the seconds since the last call to `seconds` alone, and return them."""
        passed, self._mark = time.perf_counter() - self._mark, time.perf_counter()
        self.seconds += passed
        return passed

    def is_finite(self) -> bool:
        """Whether the sum of every measure since the last `read` is finite, over all processes."""
        return all(map(math.isfinite, self._whole_sums().values()))

    def read(self) -> dict[str, float]:
        """Return means and tokens_per_second over the steps since the last `read`, and reset them.

        The mean of a measure is over the steps that have it.
        """
        means = {name: total / self.num_measured[name] for name, total in self._whole_sums().items()}
        self.step_seconds += self.pass_time()  # the line above waited for the GPU
        found = means | {"tokens_per_second": round(self.num_tokens / self.step_seconds, 1)}
        self.sums, self.num_measured = {}, {}
        self.num_steps, self.num_tokens, self.step_seconds = 0, 0, 0.0
        return found

    def totals(self) -> dict[str, float]:
        """Return tokens_seen and seconds since the run's first step, up to now."""
        self.pass_time()
        return {"tokens_seen": self.tokens_seen, "seconds": round(self.seconds, 3)}

    def state(self) -> dict[str, Any]:
        """Return plain values from which Meter(**state) makes an equal meter."""
        self.pass_time()
        return {
            "tokens_seen": self.tokens_seen,
            "seconds": self.seconds,
            "sums": self._whole_sums(),
            "num_steps": self.num_steps,
            "num_measured": dict(self.num_measured),
            "num_tokens": self.num_tokens,
            "step_seconds": self.step_seconds,
        }

    def _whole_sums(self) -> dict[str, float]:
        shares = torch.tensor([float(share) for share in self.sums.values()], dtype=torch.float64)
        return dict(zip(self.sums, self.processes.sum(shares).tolist(), strict=True))
