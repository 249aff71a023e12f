"""The curves and last figures of a run's metrics.jsonl, gathered line by line in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

# All points but the last. An odd number, so that the points after the first are pairs.
_MOST_POINTS = 119


@dataclass(kw_only=True)
class Point:
    """Some neighbouring values of a curve: the step of the last one, their mean, and the lowest and highest."""

    step: float
    mean: float
    low: float
    high: float
    num_values: int = 1

    def include(self, later: Point) -> None:
        """Include the values of the point that follows."""
        num_values = self.num_values + later.num_values
        self.mean += (later.mean - self.mean) * later.num_values / num_values
        self.step, self.num_values = later.step, num_values
        self.low, self.high = min(self.low, later.low), max(self.high, later.high)


class Curve:
    """A curve that is thinned while it grows, to at most 120 points.

    The first and the last value keep points of their own. Each point between them stands for some neighbouring values,
    all for the same number of them but the last, which may stand for fewer.
    """

    def __init__(self) -> None:
        self._points: list[Point] = []
        self._last: Point | None = None
        self._values_per_point = 1

    @property
    def points(self) -> list[Point]:
        """The points in order of steps."""
        return [*self._points, self._last] if self._last else []

    def add(self, step: float, value: float) -> None:
        """Add the next value."""
        if self._last:
            self._append(self._last)
        self._last = Point(step=step, mean=value, low=value, high=value)

    def _append(self, point: Point) -> None:
        if len(self._points) > 1 and self._points[-1].num_values < self._values_per_point:
            self._points[-1].include(point)
            return
        if len(self._points) == _MOST_POINTS:
            self._join_pairs()
        self._points.append(point)

    def _join_pairs(self) -> None:
        for earlier, later in zip(self._points[1::2], self._points[2::2], strict=True):
            earlier.include(later)
        del self._points[2::2]
        self._values_per_point *= 2


@dataclass(kw_only=True)
class TrainingLog:
    """What the report shows of a log.

    losses: each part of the loss, in order of first appearance.
    held_out: each measure that training took on the validation split.
    last: the last value of every number, over all lines.
    has_bounds: whether the held-out KL is a lower bound, as for a cache without a sampled tail.
    """

    losses: dict[str, Curve] = field(default_factory=dict)
    held_out: dict[str, Curve] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    has_bounds: bool = False

    @classmethod
    def of(cls, lines: Iterable[Any]) -> TrainingLog:
        """Gather the lines of metrics.jsonl. Skip lines without a step, and values that are not finite numbers."""
        log = cls()
        for line in lines:
            if isinstance(line, dict) and _is_number(line.get("step")):
                log._add(line)
        return log

    def _add(self, line: dict[str, Any]) -> None:
        step, measures = float(line["step"]), line.get("validation")
        for name, value in line.items():
            if name.endswith("_nats"):
                self.losses.setdefault(name, Curve())
            if _is_number(value):
                self.last[name] = float(value)
                if name in self.losses:
                    self.losses[name].add(step, float(value))
        if isinstance(measures, dict):
            for name, value in measures.items():
                if _is_number(value):
                    self.held_out.setdefault(name, Curve()).add(step, float(value))
            self.has_bounds |= measures.get("kl_is_lower_bound") is True


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
