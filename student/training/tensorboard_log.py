"""A run's metrics as TensorBoard's event files, under the names that metrics.jsonl gives them."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from storage.errors import MissingExtraError

TENSORBOARD_NAME = "tensorboard"
_EVENT_FILES = "events.out.tfevents.*"


def require_tensorboard() -> None:
    """Raise MissingExtraError unless the extra is installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingExtraError("--tensorboard", "tensorboard", "tensorboard")


class TensorBoardLog:
    """Writes one event file, which begins with all that metrics.jsonl holds and makes the earlier ones void.

    Going on behind them would not do: a session without this log leaves a gap, and a kill may have left points that no
    checkpoint knows of. Points are placed in time by the run's own seconds, which pauses do not count in.
    """

    def __init__(self, out: Path, lines: list[dict[str, Any]]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        directory = out / TENSORBOARD_NAME
        earlier = sorted(directory.glob(_EVENT_FILES))
        # Readers forget what they have read when they come to this file's begin.
        self._writer = SummaryWriter(str(directory), purge_step=0)
        [own] = set(directory.glob(_EVENT_FILES)) - set(earlier)
        for path in earlier:
            # A TensorBoard that is looking on waits in the last file for one of a later name: that one stays.
            if path != earlier[-1] or path > own:
                path.unlink()
        self._origin = time.time() - (_seconds(lines[-1]) if lines else 0.0)
        for line in lines:
            self._add(line)
        self._writer.flush()

    def write(self, line: dict[str, Any]) -> None:
        """Add a line of metrics.jsonl; it can be seen at once."""
        self._add(line)
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()

    def _add(self, line: dict[str, Any]) -> None:
        for name, value in _scalars(line):
            self._writer.add_scalar(name, value, line["step"], walltime=self._origin + _seconds(line))


def _seconds(line: dict[str, Any]) -> float:
    """When a line was written, in seconds of the run; earlier versions did not say."""
    seconds: float = line.get("seconds", 0.0)
    return seconds


def _scalars(line: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a line but its step; what stands inside another name is name/inner."""
    for name, value in line.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
            yield prefix + name, value
