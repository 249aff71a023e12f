"""Tokenized documents on disk: one flat array of tokens and one of document ends, memory-mapped.

Work files of a run, not part of the cache format. Nothing is held in memory, however long the corpus.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.disk.files import refusals

_TOKENS_NAME = "tokens.bin"
_ENDS_NAME = "ends.bin"


class TokenWriter:
    """Appends documents piece by piece to a new store in `directory`; every method raises WriteRefusedError."""

    def __init__(self, directory: Path, dtype: Any) -> None:
        self._directory, self._dtype = directory, np.dtype(dtype)
        with refusals(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._tokens = (directory / _TOKENS_NAME).open("wb")
            self._ends = (directory / _ENDS_NAME).open("wb")
        self.num_tokens = 0

    def append(self, ids: NDArray[Any]) -> None:
        """Add tokens to the present document."""
        with refusals(self._directory):
            self._tokens.write(ids.astype(self._dtype).tobytes())
        self.num_tokens += len(ids)

    def end_document(self) -> None:
        """Close the present document."""
        with refusals(self._directory):
            self._ends.write(np.int64(self.num_tokens).tobytes())

    def close(self) -> TokenStore:
        """Finish writing; returns the readable store."""
        with refusals(self._directory):
            self._tokens.close()
            self._ends.close()
        return TokenStore(self._directory, self._dtype)


class TokenStore:
    """Readable documents: `tokens` [num_tokens] and `ends` [num_documents], both memory-mapped."""

    def __init__(self, directory: Path, dtype: Any) -> None:
        self.tokens = _map(directory / _TOKENS_NAME, np.dtype(dtype))
        self.ends = _map(directory / _ENDS_NAME, np.dtype(np.int64))

    @property
    def num_tokens(self) -> int:
        """Tokens in all documents."""
        return len(self.tokens)

    def document(self, index: int) -> NDArray[Any]:
        """Tokens of one document."""
        start = self.ends[index - 1] if index else 0
        return self.tokens[start : self.ends[index]]

    def segment_lengths(self, start: int, stop: int) -> NDArray[np.int64]:
        """Lengths of the pieces of documents that tokens [start, stop) fall into."""
        first, last = np.searchsorted(self.ends, [start, stop - 1], side="right")
        inner_ends = np.asarray(self.ends[first:last])
        return np.diff(np.concatenate([[start], inner_ends, [stop]])).astype(np.int64)


def _map(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    if path.stat().st_size == 0:
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")
