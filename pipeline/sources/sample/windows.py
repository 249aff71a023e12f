"""Draw windows of a source at random, two from each of many stretches of equal length.

The files of a source, one behind the other, are one long line of bytes. All windows have the same length, so every byte
has the same chance, and a sample is the source in small: no file counts more than its size.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# 2 MiB of text are tokenized in seconds. Many short windows say more than few long ones: neighbouring texts are alike.
WINDOW_BYTES = 1 << 12
_MOST_STRATA = 256
# Windows in a stratum at least, so that two are a sample of it.
_LEAST_WINDOWS = 4


@dataclass(frozen=True, kw_only=True)
class Window:
    """Bytes [start, stop) of the line. weight: number of windows that it stands for, of those in its stratum."""

    stratum: int
    weight: float
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class FileRange:
    """Bytes [start, stop) of a file of file_bytes bytes."""

    path: Path
    file_bytes: int
    start: int
    stop: int


def draw_windows(line_bytes: int, seed: int) -> list[Window]:
    """Return windows in order, pairs of one stratum; the same for the same length and seed.

    line_bytes: enough for a stratum, which is four windows.
    """
    num_windows = -(-line_bytes // WINDOW_BYTES)
    num_strata = min(_MOST_STRATA, num_windows // _LEAST_WINDOWS)
    generator, windows = random.Random(seed), []
    for stratum in range(num_strata):
        first, end = (edge * num_windows // num_strata for edge in (stratum, stratum + 1))
        for index in sorted(generator.sample(range(first, end), 2)):
            start = index * WINDOW_BYTES
            stop = min(start + WINDOW_BYTES, line_bytes)
            windows.append(Window(stratum=stratum, weight=(end - first) / 2, start=start, stop=stop))
    return windows


class Line:
    """The files of a source, one behind the other."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files, self._sizes = files, [file.stat().st_size for file in files]
        self._ends = np.cumsum(self._sizes, dtype=np.int64)

    @property
    def num_bytes(self) -> int:
        """Number of bytes of all files."""
        return int(self._ends[-1])

    def ranges(self, window: Window) -> Iterator[FileRange]:
        """Yield the ranges of files that make up a window."""
        for index in itertools.count(int(np.searchsorted(self._ends, window.start, side="right"))):
            size, offset = self._sizes[index], int(self._ends[index]) - self._sizes[index]
            if size:
                start, stop = max(window.start - offset, 0), min(window.stop - offset, size)
                yield FileRange(path=self.files[index], file_bytes=size, start=start, stop=stop)
            if window.stop <= self._ends[index]:
                return
