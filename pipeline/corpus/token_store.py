"""Tokenized documents on disk, memory-mapped: a flat array of tokens, an array of document ends, perhaps flags.

A flag says whether the teacher should teach a token. There are none when every token is wanted, as in plain text.

These are work files of a run, not part of the cache format. Memory does not grow with the corpus.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.disk.files import refusals

_TOKENS_NAME = "tokens.bin"
_ENDS_NAME = "ends.bin"
_IS_WANTED_NAME = "is_wanted.bin"
_COPIED_TOKENS = 1 << 20


class TokenWriter:
    """Write documents piece by piece to a new store in `directory`. Every method raises WriteRefusedError.

    marks_wanted: store a flag for each token.
    """

    def __init__(self, directory: Path, dtype: Any, *, marks_wanted: bool = False) -> None:
        self._directory, self._dtype = directory, np.dtype(dtype)
        with refusals(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._tokens = (directory / _TOKENS_NAME).open("wb")
            self._ends = (directory / _ENDS_NAME).open("wb")
            self._is_wanted = (directory / _IS_WANTED_NAME).open("wb") if marks_wanted else None
        self.num_tokens = 0

    def append(self, ids: NDArray[Any], is_wanted: NDArray[np.bool_] | None = None) -> None:
        """Append tokens to the current document.

        is_wanted: whether each token, as the label of a target, is wanted; None: all are. A store without flags takes
        None only.
        """
        assert is_wanted is None or self._is_wanted is not None
        with refusals(self._directory):
            self._tokens.write(ids.astype(self._dtype).tobytes())
            if self._is_wanted is not None:
                flags = np.ones(len(ids), np.bool_) if is_wanted is None else is_wanted
                self._is_wanted.write(flags.tobytes())
        self.num_tokens += len(ids)

    def end_document(self) -> None:
        """End the current document."""
        with refusals(self._directory):
            self._ends.write(np.int64(self.num_tokens).tobytes())

    def extend(self, store: TokenStore, start: int, stop: int, ends: NDArray[np.int64]) -> None:
        """Append tokens [start, stop) of another store. ends: those of its documents that end among them."""
        with refusals(self._directory):
            self._ends.write((ends - start + self.num_tokens).tobytes())
        for first in range(start, stop, _COPIED_TOKENS):
            piece = slice(first, min(first + _COPIED_TOKENS, stop))
            self.append(store.tokens[piece], None if store.is_wanted is None else store.is_wanted[piece])

    def close(self) -> TokenStore:
        """Close the files and return the readable store."""
        with refusals(self._directory):
            self._tokens.close()
            self._ends.close()
            if self._is_wanted is not None:
                self._is_wanted.close()
        return TokenStore(self._directory, self._dtype)


class TokenStore:
    """Documents to read: `tokens` and `is_wanted` [num_tokens], `ends` [num_documents], all memory-mapped.

    is_wanted: whether each token, as the label of a target, is wanted; None when the store has no flags: all are.
    ends: int64, the index in `tokens` just behind each document.
    """

    def __init__(self, directory: Path, dtype: Any) -> None:
        self.tokens = map_array(directory / _TOKENS_NAME, np.dtype(dtype))
        self.ends = map_array(directory / _ENDS_NAME, np.dtype(np.int64))
        flags = directory / _IS_WANTED_NAME
        self.is_wanted = map_array(flags, np.dtype(np.bool_)) if flags.exists() else None

    @property
    def num_tokens(self) -> int:
        """Number of tokens in all documents."""
        return len(self.tokens)

    def document(self, index: int) -> NDArray[Any]:
        """Return the tokens of one document."""
        return self.tokens[self.place(index)]

    def place(self, index: int) -> slice:
        """Return where the tokens of one document lie."""
        return slice(int(self.ends[index - 1]) if index else 0, int(self.ends[index]))

    def segment_lengths(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the lengths of the pieces of documents that make up tokens [start, stop)."""
        first, last = np.searchsorted(self.ends, [start, stop - 1], side="right")
        inner_ends = np.asarray(self.ends[first:last])
        return np.diff(np.concatenate([[start], inner_ends, [stop]])).astype(np.int64)


def map_array(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the values in a file, memory-mapped."""
    if path.stat().st_size == 0:
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")
