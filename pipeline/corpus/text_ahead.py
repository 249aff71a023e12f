"""Read a text from front to back, some characters ahead of where it is used."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

_SLICE_CHARS = 1 << 17


class TextAhead:
    """A text that is read once from front to back, of which only what is ahead is kept.

    num_dropped: number of characters that have been dropped at the front.
    """

    def __init__(self, pieces: Iterable[str]) -> None:
        self._slices = (
            piece[start : start + _SLICE_CHARS] for piece in pieces for start in range(0, len(piece), _SLICE_CHARS)
        )
        self._kept = ""
        self.num_dropped = 0

    def peek(self, num_chars: int) -> str:
        """Return the next num_chars characters, or all that are left."""
        while len(self._kept) < num_chars and (more := next(self._slices, "")):
            self._kept += more
        return self._kept[:num_chars]

    def drop(self, num_chars: int) -> None:
        """Leave out the next num_chars characters."""
        self._kept = self._kept[num_chars:]
        self.num_dropped += num_chars

    def rest(self) -> Iterator[str]:
        """Yield all that is left, what was read ahead in one slice."""
        kept, self._kept = self._kept, ""
        return itertools.chain([kept], self._slices)
