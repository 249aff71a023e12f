"""Find what a text repeats of texts seen before, by runs of words."""

from __future__ import annotations

import re
from collections.abc import Iterable

_WORD = re.compile(r"[a-z0-9_]+")


class SeenRuns:
    """The runs of `num_words` words of all texts added so far, without case, spaces and punctuation."""

    def __init__(self, num_words: int, texts: Iterable[str] = ()) -> None:
        self._num_words = num_words
        self._runs: set[int] = set()
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Remember the runs of `text`."""
        self._runs.update(self._runs_of(text))

    def share_seen(self, text: str) -> float:
        """Return the share of the runs of `text` that are in a text added before."""
        runs = self._runs_of(text)
        return sum(run in self._runs for run in runs) / len(runs)

    def _runs_of(self, text: str) -> list[int]:
        words = _WORD.findall(text.lower())
        count = max(1, len(words) - self._num_words + 1)  # a shorter text is one run
        return [hash(" ".join(words[first : first + self._num_words])) for first in range(count)]
