"""A run's metrics as TensorBoard's event files, under the names of metrics.jsonl."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from storage.disk.files import refusals
from storage.errors import MissingExtraError

TENSORBOARD_NAME = "tensorboard"
_SUFFIX = ".teachonce"  # tells our files from those of other programs, which are not removed
_EVENT_FILES = f"events.out.tfevents.*{_SUFFIX}"


def require_tensorboard() -> None:
    """Raise MissingExtraError unless tensorboard is installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingExtraError("--tensorboard", "tensorboard", "tensorboard")


class TensorBoardLog:
    """Writes one event file. It starts with all lines of metrics.jsonl and replaces the earlier event files.

    Appending to the earlier files would be wrong: a session without this log leaves a gap, and a killed run may have
    left points after its last checkpoint. The time of a point is the run's own seconds, which exclude pauses.
    """

    def __init__(self, out: Path, lines: Iterable[dict[str, Any]], last_line: dict[str, Any]) -> None:
        """lines: those of metrics.jsonl; last_line: the last of them, {} for none."""
        from torch.utils.tensorboard import SummaryWriter

        directory = out / TENSORBOARD_NAME
        earlier = sorted(directory.glob(_EVENT_FILES))
        # purge_step=0: readers discard the points of earlier files when they reach the start of this one.
        self._writer = SummaryWriter(str(directory), purge_step=0, filename_suffix=_SUFFIX)
        [own] = set(directory.glob(_EVENT_FILES)) - set(earlier)
        self._path = own
        for path in earlier:
            # A running TensorBoard waits at the last file for a file with a later name, so keep the last one.
            if path != earlier[-1] or path > own:
                path.unlink()
        self._origin = time.time() - _seconds(last_line)
        self.write(lines)

    def write(self, lines: Iterable[dict[str, Any]]) -> None:
        """Add lines of metrics.jsonl. TensorBoard can show them at once. Raise WriteRefusedError for a full disk."""
        with refusals(self._path):
            for line in lines:
                for name, value in _scalars(line):
                    self._writer.add_scalar(name, value, line["step"], walltime=self._origin + _seconds(line))
            self._writer.flush()

    def close(self) -> None:
        """Close the file. Raise WriteRefusedError for a full disk."""
        with refusals(self._path):
            self._writer.close()


def _seconds(line: dict[str, Any]) -> float:
    """Return the run's seconds when a line was written, 0 for lines of earlier versions, which do not say."""
    seconds: float = line.get("seconds", 0.0)
    return seconds


def _scalars(line: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number of a line except its step. A number inside `outer` is named outer/inner."""
    for name, value in line.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
            yield prefix + name, value
