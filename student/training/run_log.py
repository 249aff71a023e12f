"""metrics.jsonl: one JSON object per line, in order of steps, also after a resume."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from storage.disk.files import publishing
from student.training.tensorboard_log import TensorBoardLog

METRICS_NAME = "metrics.jsonl"


class RunLog:
    """Appends to metrics.jsonl. Drops the lines after the step that a run resumes from.

    Every line holds `step`, and tokens_seen and seconds (see student.training.meter) since the run's first step, over
    all resumes. A line about training also holds means over the steps since the previous such line: each part of the
    loss (`…_nats`), gradient_norm before clipping, and tokens_per_second; and the learning_rate of the last step. A
    line about an evaluation also holds `validation`: the measures after that step (see student.evaluation).
    """

    def __init__(self, out: Path, first_step: int, *, tensorboard: bool = False) -> None:
        """tensorboard: also write TensorBoard's event files, which include the earlier lines."""
        self._path = out / METRICS_NAME
        self._last_validation: int | None = None
        last_line: dict[str, Any] = {}
        with publishing(self._path) as file:
            for line in metrics_lines(out):
                if line["step"] <= first_step:
                    file.write(json.dumps(line).encode() + b"\n")
                    self._note(line)
                    last_line = line
        self._tensorboard = TensorBoardLog(out, metrics_lines(out), last_line) if tensorboard else None

    def has_validation(self, step: int) -> bool:
        """Whether the last evaluation in the log is the one after `step` steps."""
        return self._last_validation == step

    def write(self, step: int, **metrics: Any) -> None:
        """Append one line."""
        line = {"step": step, **metrics}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._note(line)
        if self._tensorboard:
            self._tensorboard.write(line)

    def close(self) -> None:
        """Close the event files."""
        if self._tensorboard:
            self._tensorboard.close()

    def _note(self, line: dict[str, Any]) -> None:
        if "validation" in line:
            self._last_validation = line["step"]


class NoLog:
    """Stands in for RunLog in all processes except the first, which writes the log."""

    def has_validation(self, step: int) -> bool:
        """Return True, so that this process never asks for an evaluation."""
        return True

    def write(self, step: int, **metrics: Any) -> None:
        """Do nothing: the first process writes the line."""

    def close(self) -> None:
        """Do nothing: no file is open."""


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl. A long run's take hundreds of megabytes; see metrics_lines."""
    return list(metrics_lines(out))


def metrics_lines(out: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a run's metrics.jsonl, up to the first that is not JSON; nothing without the file."""
    path = out / METRICS_NAME
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                found = json.loads(line)
            except ValueError:
                return  # the run was killed in the middle of this line
            yield found
