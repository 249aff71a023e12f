"""metrics.jsonl: one JSON object per line, in order of steps, also after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from storage.disk.files import write_file
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
        self._out, self._path = out, out / METRICS_NAME
        kept = [line for line in read_metrics(out) if line["step"] <= first_step]
        write_file(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._tensorboard = TensorBoardLog(out, kept) if tensorboard else None

    def has_validation(self, step: int) -> bool:
        """Whether the log has the evaluation after `step` steps."""
        return any(line["step"] == step and "validation" in line for line in read_metrics(self._out))

    def write(self, step: int, **metrics: Any) -> None:
        """Append one line."""
        line = {"step": step, **metrics}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._tensorboard:
            self._tensorboard.write(line)

    def close(self) -> None:
        """Close the event files."""
        if self._tensorboard:
            self._tensorboard.close()


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
    """Return the lines of a run's metrics.jsonl, up to the first that is not JSON; [] without the file."""
    path = out / METRICS_NAME
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break  # the run was killed in the middle of this line
    return lines
