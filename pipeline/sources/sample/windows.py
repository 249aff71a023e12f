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
_LEAST_STRETCH_BYTES = _LEAST_WINDOWS * WINDOW_BYTES


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


def draw_windows(stretches: Sequence[int], seed: int) -> list[Window]:
    """Return windows in order, pairs of one stratum; the same for the same line and seed.

    stretches: the lengths in bytes that the line consists of, each of four windows at least. No stratum and no window
    lies in two of them.
    """
    generator, windows = random.Random(seed), []
    offset = num_strata = 0
    for num_bytes in stretches:
        num_windows = -(-num_bytes // WINDOW_BYTES)
        share = round(_MOST_STRATA * num_bytes / sum(stretches))
        own_strata = max(1, min(share, num_windows // _LEAST_WINDOWS))
        for stratum in range(own_strata):
            first, end = (edge * num_windows // own_strata for edge in (stratum, stratum + 1))
            for index in sorted(generator.sample(range(first, end), 2)):
                start = index * WINDOW_BYTES
                stop = min(start + WINDOW_BYTES, num_bytes)
                window = Window(
                    stratum=num_strata + stratum, weight=(end - first) / 2, start=offset + start, stop=offset + stop
                )
                windows.append(window)
        offset, num_strata = offset + num_bytes, num_strata + own_strata
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

    def stretches(self) -> list[int]:
        """Return the lengths of the line's stretches: files that are long enough for a stratum, and the rest between.

        A stratum with the end of one long file and the beginning of another would be of two kinds, and two windows do
        not show how different these are.
        """
        long_file = self.num_bytes // _MOST_STRATA
        stretches, has_long = [0], False
        for size in self._sizes:
            if (size >= long_file or has_long) and stretches[-1] >= _LEAST_STRETCH_BYTES:
                stretches.append(0)
                has_long = False
            stretches[-1] += size
            has_long = has_long or size >= long_file
        if stretches[-1] < _LEAST_STRETCH_BYTES and len(stretches) > 1:
            last = stretches.pop()
            stretches[-1] += last
        return stretches

    def ranges(self, window: Window) -> Iterator[FileRange]:
        """Yield the ranges of files that make up a window."""
        for index in itertools.count(int(np.searchsorted(self._ends, window.start, side="right"))):
            size, offset = self._sizes[index], int(self._ends[index]) - self._sizes[index]
            if size:
                start, stop = max(window.start - offset, 0), min(window.stop - offset, size)
                yield FileRange(path=self.files[index], file_bytes=size, start=start, stop=stop)
            if window.stop <= self._ends[index]:
                return
