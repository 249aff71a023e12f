"""metrics.jsonl: one JSON object per line, in order of steps, also after a resume."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from storage.disk.files import publishing, refusals
from student.training.tensorboard_log import TensorBoardLog

Subject = Literal["training", "validation"]
METRICS_NAME = "metrics.jsonl"
LINE_BEGINNING = b'{"step": '


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
        self.seconds = 0.0
        """Seconds of the run up to the last line."""
        self._kept: set[tuple[int, Subject]] = set()  # of first_step alone
        last_line: dict[str, Any] = {}
        with publishing(self._path) as file:
            for line in metrics_lines(out):
                if line["step"] <= first_step:
                    file.write(json.dumps(line).encode() + b"\n")
                    self.seconds = max(self.seconds, line.get("seconds", 0.0))
                    last_line = line
                if line["step"] == first_step:
                    self._kept.add((first_step, subject_of(line)))
        self._tensorboard = TensorBoardLog(out, metrics_lines(out), last_line) if tensorboard else None

    def lacks(self, step: int, subject: Subject) -> bool:
        """Whether the log had no line about this after `step` steps, the first step, when it was opened."""
        return (step, subject) not in self._kept

    def write(self, step: int, **metrics: Any) -> None:
        """Append one line. Raise WriteRefusedError when the operating system refuses it."""
        line = {"step": step, **metrics}
        with refusals(self._path), self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._tensorboard:
            self._tensorboard.write([line])

    def close(self) -> None:
        """Close the event files."""
        if self._tensorboard:
            self._tensorboard.close()


class NoLog:
    """Stands in for RunLog in all processes except the first, which writes the log."""

    def lacks(self, step: int, subject: Subject) -> bool:
        """Return False, so that this process never asks for a line."""
        return False

    def write(self, step: int, **metrics: Any) -> None:
        """Do nothing: the first process writes the line."""

    def close(self) -> None:
        """Do nothing: no file is open."""


def subject_of(line: dict[str, Any]) -> Subject:
    """Return what a line is about."""
    return "validation" if "validation" in line else "training"


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl. A long run's take hundreds of megabytes; see metrics_lines."""
    return list(metrics_lines(out))


def metrics_lines(out: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a run's metrics.jsonl; nothing without the file.

    Leave out what is not a line of a run: one that was cut when the run was killed, and any other text or bytes.
    """
    path = out / METRICS_NAME
    if not path.is_file():
        return
    with path.open("rb") as file:
        yield from (found for line in file if (found := _parse(line)) is not None)


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return a line of a run: an object with a whole number of steps and, if it states them, a number of seconds."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_ours = isinstance(found, dict) and type(found.get("step")) is int
    return found if is_ours and type(found.get("seconds", 0.0)) in (int, float) else None
