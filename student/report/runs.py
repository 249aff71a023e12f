"""A student of the report: its settings, its log, its measures, and its speed of generation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.rows.kinds import KINDS
from student.training.run_log import read_metrics

Point = tuple[float, float]
_MOST_POINTS = 120


@dataclass(frozen=True, kw_only=True)
class Run:
    """A student of the report.

    name: its name on the page.
    settings: content of run.json, empty for a model that teachonce did not train.
    metrics: lines of metrics.jsonl.
    measures: results of student.evaluate.
    tokens_per_second: speed of generation at batch size 1 on this machine, None where it was not measured.
    """

    name: str
    directory: Path
    settings: dict[str, Any]
    metrics: list[dict[str, Any]]
    measures: dict[str, Any]
    tokens_per_second: float | None

    @property
    def is_baseline(self) -> bool:
        """Whether it was trained on plain text alone, with no weight on anything from the teacher."""
        mix = self.settings.get("mix")
        if not isinstance(mix, dict):
            return False
        kinds = mix.keys() & KINDS.keys()
        return bool(kinds) and all(mix[kind] == 0 for kind in kinds)

    @property
    def loss_names(self) -> list[str]:
        """Names of the parts of the loss in the log, in order of first appearance."""
        found: dict[str, None] = {}
        for line in self.metrics:
            found |= dict.fromkeys(name for name in line if name.endswith("_nats"))
        return list(found)

    def logged(self, name: str) -> list[Point]:
        """Return (step, value) of a logged number, thinned by means over neighbours."""
        points = [(float(line["step"]), line[name]) for line in self.metrics if _is_number(line.get(name))]
        return thinned(points)

    def validated(self, name: str) -> list[Point]:
        """Return (step, value) of a measure that training logged on the validation split."""
        found = [(line["step"], line.get("validation")) for line in self.metrics]
        return [
            (float(step), float(measures[name]))
            for step, measures in found
            if isinstance(measures, dict) and _is_number(measures.get(name))
        ]

    @property
    def has_bounds(self) -> bool:
        """Whether the held-out KL in its log is a lower bound, as for a cache without a sampled tail."""
        found = [line.get("validation") for line in self.metrics]
        return any(isinstance(measures, dict) and measures.get("kl_is_lower_bound") is True for measures in found)

    def last(self, name: str) -> float | None:
        """Return the last logged value of a number, None when the log does not have it (an older version)."""
        values = [line[name] for line in self.metrics if _is_number(line.get(name))]
        return float(values[-1]) if values else None


def read_log(directory: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl that have a step."""
    return [line for line in read_metrics(directory) if isinstance(line, dict) and _is_number(line.get("step"))]


def distinct_names(directories: Sequence[Path]) -> list[str]:
    """Return the last part of each path. When two are equal, take more parts of all paths."""
    resolved = [directory.resolve() for directory in directories]
    num_parts = 1
    while True:
        names = ["/".join(path.parts[-num_parts:]) for path in resolved]
        if len(set(names)) == len(set(resolved)) or num_parts > max(len(path.parts) for path in resolved):
            return names
        num_parts += 1


def thinned(points: Sequence[Point]) -> list[Point]:
    """Return at most 120 points. Each is the mean of some neighbours, at the step of the last of them."""
    width = max(1, -(-len(points) // _MOST_POINTS))
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
