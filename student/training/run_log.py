"""metrics.jsonl: one JSON object a line, in step order, also after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from storage.disk.files import write_file
from student.training.tensorboard_log import TensorBoardLog

METRICS_NAME = "metrics.jsonl"


class RunLog:
    """Appends to metrics.jsonl; lines after the step that a run resumes from are dropped.

    A line holds its step and means over the steps since the one before: each part of the loss (`…_nats`),
    gradient_norm before clipping, and tokens_per_second; learning_rate of the last step; tokens_seen, and
    seconds (see student.training.meter) since the run's first step, over all resumes. Or it holds `validation`, the
    measures after that step (see student.evaluation), with tokens_seen and seconds.
    """

    def __init__(self, out: Path, first_step: int, *, tensorboard: bool = False) -> None:
        """tensorboard: write event files beside it, of earlier lines too."""
        self._out, self._path = out, out / METRICS_NAME
        kept = [line for line in read_metrics(out) if line["step"] <= first_step]
        write_file(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._tensorboard = TensorBoardLog(out, kept) if tensorboard else None

    def has_validation(self, step: int) -> bool:
        """Whether the evaluation after `step` steps is there."""
        return any(line["step"] == step and "validation" in line for line in read_metrics(self._out))

    def write(self, step: int, **metrics: Any) -> None:
        """Add one line."""
        line = {"step": step, **metrics}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._tensorboard:
            self._tensorboard.write(line)

    def close(self) -> None:
        """Finish the event files."""
        if self._tensorboard:
            self._tensorboard.close()


class NoLog:
    """In the place of a RunLog where another process writes it."""

    def has_validation(self, step: int) -> bool:
        """Whether this process misses an evaluation: never."""
        return True

    def write(self, step: int, **metrics: Any) -> None:
        """Leave it to the other process."""

    def close(self) -> None:
        """Nothing is open."""


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics."""
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
