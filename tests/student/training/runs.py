"""Runs of the trainer that are stopped at a step or a call, and what is compared of them."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from student import TrainConfig
from student.training.objective import Objective

# A run to the end, the hashes of its files, and its metrics.
Undisturbed = tuple[TrainConfig, dict[str, str], list[dict[str, Any]]]


class Stop(Exception):
    """The injected fault."""


@contextmanager
def stopped_at(step: int, signal_number: int | None = None) -> Iterator[None]:
    """Fails (or is sent a signal) in the place of a step, counted from 1 after the start or resume."""
    original, count = Objective.accumulate, iter(range(1, step))

    def accumulate(self: Objective, rows: Any) -> Any:
        if next(count, None) is None:
            if signal_number is None:
                raise Stop
            os.kill(os.getpid(), signal_number)
        return original(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Objective, "accumulate", accumulate)
        with pytest.raises(Stop if signal_number is None else KeyboardInterrupt):
            yield


def final_files(out: Path) -> dict[str, str]:
    """What a finished student consists of, without what only a resume or a reader of logs needs."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.iterdir())
        if path.name not in ("metrics.jsonl", "checkpoint.pt", "tensorboard")
    }


def without_timing(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All but what depends on the clock."""
    return [{k: v for k, v in line.items() if k not in ("tokens_per_second", "seconds")} for line in metrics]


def lines_of(metrics: list[dict[str, Any]]) -> Counter[tuple[int, str]]:
    return Counter((line["step"], "validation" if "validation" in line else "train") for line in metrics)


def fail_after(patch: pytest.MonkeyPatch, target: str, calls: int) -> None:
    from pkgutil import resolve_name

    original, count = resolve_name(target), iter(range(calls))

    def failing(*args: Any, **settings: Any) -> Any:
        if next(count, None) is None:
            raise Stop
        return original(*args, **settings)

    patch.setattr(target, failing)
