"""Pack texts into blocks: each text whole in one block where it fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")

# Blocks that wait for more texts. They bound the memory, and fill blocks to more than nine tenths.
_NUM_OPEN = 16


@dataclass(frozen=True)
class Piece(Generic[Item]):
    """Tokens [start, stop) of a text."""

    text: Item
    start: int
    stop: int


class Packer(Generic[Item]):
    """Put each text into the fullest open block in which it fits. A text that is longer than a block is cut.

    Which piece goes where depends on the lengths alone.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._open: list[list[Piece[Item]]] = []
        self._num_free: list[int] = []

    def add(self, text: Item, num_tokens: int) -> Iterator[list[Piece[Item]]]:
        """Add a text; yield the blocks that this completes. A piece of one token has no target and is left out."""
        for start in range(0, num_tokens, self._block_tokens):
            piece = Piece(text, start, min(start + self._block_tokens, num_tokens))
            if piece.stop - piece.start > 1:
                yield from self._place(piece)

    def rest(self) -> Iterator[list[Piece[Item]]]:
        """Yield the blocks that are still open."""
        while self._open:
            yield self._close(0)

    def _place(self, piece: Piece[Item]) -> Iterator[list[Piece[Item]]]:
        length = piece.stop - piece.start
        fitting = [index for index, num_free in enumerate(self._num_free) if num_free >= length]
        if fitting:
            index = min(fitting, key=lambda index: self._num_free[index])
        else:
            if len(self._open) == _NUM_OPEN:
                yield self._close(min(range(_NUM_OPEN), key=lambda index: self._num_free[index]))
            index = len(self._open)
            self._open.append([])
            self._num_free.append(self._block_tokens)
        self._open[index].append(piece)
        self._num_free[index] -= length
        if not self._num_free[index]:
            yield self._close(index)

    def _close(self, index: int) -> list[Piece[Item]]:
        del self._num_free[index]
        return self._open.pop(index)
