"""Write conversations and pairs to the token store of a split. Keep them whole where they fit into a block.

An answer without its question is not what the teacher was made for. So a conversation or a pair that has no room in the
rest of a block begins the next one. The document before it is lengthened by tokens that nobody is to learn. No token
sees what follows it, so they change nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.token_store import TokenWriter


class Piece(NamedTuple):
    """Token ids [num_tokens], and whether each is wanted; None: all are."""

    ids: NDArray[Any]
    is_wanted: NDArray[np.bool_] | None = None


class DocumentWriter:
    """Write conversations and pairs one after the other.

    block_tokens, num_beginning: tokens of a block, and of the beginning that blocks give to each segment. filler_id:
    the token that lengthens documents.
    """

    def __init__(self, directory: Path, dtype: Any, *, block_tokens: int, num_beginning: int, filler_id: int) -> None:
        self._writer = TokenWriter(directory, dtype, marks_wanted=True)
        self._block_tokens, self._num_beginning, self._filler_id = block_tokens, num_beginning, filler_id
        self._used = 0  # tokens in the current block
        self._is_open = False  # whether the last document may still be lengthened

    @property
    def num_tokens(self) -> int:
        """Number of tokens in the store, with those that lengthen documents."""
        return self._writer.num_tokens

    def write(self, document: Piece) -> None:
        """Write a document. Begin a new block if it fits into one, but not into the rest of this one."""
        num_tokens = len(document.ids)
        if self._used and self._block_tokens - self._used < self._num_beginning + num_tokens <= self._block_tokens:
            self._fill_block()
        self._end_document()
        self._writer.append(*document)
        self._is_open = True
        self._used = self._used_after(num_tokens)

    def close(self) -> None:
        """Write the end of the last document. Fill the last block, which would be left out otherwise."""
        if self._used:
            self._fill_block()
        self._end_document()
        self._writer.close()

    def _end_document(self) -> None:
        if self._is_open:
            self._writer.end_document()
            self._is_open = False

    def _fill_block(self) -> None:
        num_filler = self._block_tokens - self._used
        self._writer.append(np.full(num_filler, self._filler_id), np.zeros(num_filler, dtype=np.bool_))
        self._used = 0

    def _used_after(self, num_tokens: int) -> int:
        """Return the tokens in the last block after a document of num_tokens.

        Every piece of it begins with num_beginning tokens, and begins a new block when only they would have room.
        """
        room = self._block_tokens - self._used - self._num_beginning
        if room <= 0:
            room = self._block_tokens - self._num_beginning
        if num_tokens <= room:
            return (self._block_tokens - room + num_tokens) % self._block_tokens
        rest = (num_tokens - room) % (self._block_tokens - self._num_beginning)
        return self._num_beginning + rest if rest else 0
