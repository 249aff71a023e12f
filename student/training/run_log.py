"""metrics.jsonl: one JSON object per line, in order of steps, also after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from storage.disk.files import refusals, write_file
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
        kept = [line for line in read_metrics(out) if line["step"] <= first_step]
        write_file(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self.seconds: float = max((line.get("seconds", 0.0) for line in kept), default=0.0)
        """Seconds of the run up to the last line."""
        self._kept = {(line["step"], subject_of(line)) for line in kept}
        self._tensorboard = TensorBoardLog(out, kept) if tensorboard else None

    def lacks(self, step: int, subject: Subject) -> bool:
        """Whether the log had no line about this after `step` steps when it was opened."""
        return (step, subject) not in self._kept

    def write(self, step: int, **metrics: Any) -> None:
        """Append one line. Raise WriteRefusedError when the operating system refuses it."""
        line = {"step": step, **metrics}
        with refusals(self._path), self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._tensorboard:
            self._tensorboard.write(line)

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
    """Return the lines of a run's metrics.jsonl; [] without the file.

    Leave out what is not a line of a run: one that was cut when the run was killed, and any other text or bytes.
    """
    path = out / METRICS_NAME
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    return [found for line in lines if (found := _parse(line)) is not None]


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return a line of a run: an object with a whole number of steps and, if it states them, a number of seconds."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_ours = isinstance(found, dict) and type(found.get("step")) is int
    return found if is_ours and type(found.get("seconds", 0.0)) in (int, float) else None
