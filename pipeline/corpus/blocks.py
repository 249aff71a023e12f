"""Cut a token store into blocks of T + 1 tokens, and take prompts from documents."""

from __future__ import annotations

import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.token_store import TokenStore
from storage.rows.segments import position_ids

_ENDS_AT_ONCE = 1 << 16


class Blocks:
    """Consecutive blocks of `block_size` + 1 tokens. A remainder that is shorter than a block is left out.

    Every segment begins with `beginning_ids`: a document as well as a piece that continues one in a further block. A
    segment's text follows them. Where a block has room for nothing but them, they fill it.
    """

    def __init__(self, store: TokenStore, block_size: int, beginning_ids: Sequence[int] = ()) -> None:
        self._store, self._block_tokens = store, block_size + 1
        self._beginning = np.array(beginning_ids, dtype=store.tokens.dtype)
        # Block i has the tokens [_starts[i], _starts[i + 1]) of the store.
        self._starts = block_starts(store, self._block_tokens, len(beginning_ids))

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def num_beginning(self) -> int:
        """Number of tokens that every segment begins with."""
        return len(self._beginning)

    def input_ids(self, start: int, stop: int) -> NDArray[Any]:
        """Return the tokens of blocks [start, stop) as an array [stop - start, T + 1]."""
        text = self._store.tokens[self._starts[start] : self._starts[stop]]
        if not self.num_beginning:
            return np.asarray(text).reshape(-1, self._block_tokens)
        positions = self._positions(start, stop)
        is_text = positions >= self.num_beginning
        flat = np.empty(len(positions), dtype=text.dtype)
        flat[is_text] = text
        flat[~is_text] = self._beginning[positions[~is_text]]
        return flat.reshape(-1, self._block_tokens)

    @property
    def marks_wanted(self) -> bool:
        """Whether some targets may be unwanted, so that rows have the column is_wanted."""
        return self._store.is_wanted is not None or self.num_beginning > 0

    def is_wanted(self, start: int, stop: int) -> NDArray[np.bool_] | None:
        """Return whether the label of each target in blocks [start, stop) is wanted: [stop - start, T].

        The label of target t is token t + 1. A beginning is not wanted, nor is the first token of a piece that
        continues a document: a beginning foretells how documents begin. Return None when every target is wanted.
        """
        if not self.marks_wanted:
            return None
        is_wanted = self._positions(start, stop) >= self.num_beginning
        if self._store.is_wanted is not None:
            is_wanted[is_wanted] = self._store.is_wanted[self._starts[start] : self._starts[stop]]
        by_block: NDArray[np.bool_] = is_wanted.reshape(-1, self._block_tokens)
        if self.num_beginning:
            by_block[:, self.num_beginning] &= [self._begins_document(self._starts[i]) for i in range(start, stop)]
        return by_block[:, 1:]

    def segment_lengths(self, index: int) -> NDArray[np.int64]:
        """Return the lengths of the pieces of documents in a block, each with its beginning."""
        lengths = self._store.segment_lengths(self._starts[index], self._starts[index + 1]) + self.num_beginning
        rest = self._block_tokens - int(lengths.sum())
        return np.append(lengths, rest) if rest else lengths

    def _positions(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the position of every token of blocks [start, stop) in its segment: [(stop - start) (T + 1)]."""
        block_starts = np.array(self._starts[start : stop + 1], dtype=np.int64)
        first, last = np.searchsorted(self._store.ends, block_starts[[0, -1]])
        cuts = np.union1d(block_starts, self._store.ends[first:last])
        lengths = np.diff(cuts) + self.num_beginning
        if self.num_beginning:  # what is left of a block is a segment of its own
            first_segments = np.searchsorted(cuts, block_starts)
            rests = self._block_tokens - np.add.reduceat(np.append(lengths, 0), first_segments)[:-1]
            lengths = np.insert(lengths, first_segments[1:], rests)
        return position_ids(lengths)

    def _begins_document(self, token: int) -> bool:
        return token == 0 or bool(self._store.ends[np.searchsorted(self._store.ends, token)] == token)


def block_starts(store: TokenStore, block_tokens: int, num_beginning: int) -> Sequence[int]:
    """Return the index in the store's tokens of each whole block's first token, and the index behind the last block.

    A segment of n tokens takes num_beginning + n of a block, which must have room for more than num_beginning. The work
    is linear in the number of documents and blocks. 8 bytes a block are kept, nothing without a beginning.
    """
    if num_beginning == 0:
        return range(0, store.num_tokens + 1, block_tokens)
    assert block_tokens > num_beginning
    starts = array.array("q", [0])
    text_tokens = block_tokens - num_beginning  # of a block with one segment
    start = filled = 0  # the token at which a document starts; tokens in the block that is being filled
    for end in _plain(store.ends):
        room = block_tokens - filled - num_beginning
        if room <= 0:  # for text: a beginning fills the rest
            starts.append(start)
            filled, room = 0, text_tokens
        if end - start < room:
            filled += num_beginning + end - start
        else:
            num_further = (end - start - room) // text_tokens
            starts.extend(range(start + room, start + room + num_further * text_tokens + 1, text_tokens))
            rest = end - starts[-1]
            filled = num_beginning + rest if rest else 0
        start = end
    return starts


def _plain(ends: NDArray[np.int64]) -> Iterator[int]:
    """Yield the values of a memory-mapped array as plain numbers, a part at a time."""
    for first in range(0, len(ends), _ENDS_AT_ONCE):
        yield from ends[first : first + _ENDS_AT_ONCE].tolist()


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts of one split: the prompt_id and the token ids (prompt_ids) of each."""

    prompt_id: list[int]
    prompt_ids: list[NDArray[Any]]

    def __len__(self) -> int:
        return len(self.prompt_id)


def prompts_from_blocks(blocks: Blocks, num_prompts: int, prompt_tokens: int) -> PromptSet:
    """Return prompts from evenly spread blocks. A prompt's prompt_id is the row_id of its block.

    Divide the blocks into num_prompts ranges and take at most one prompt from each. The prompt is the beginning and the
    first prompt_tokens tokens of a piece of a document, so it never spans two documents. The piece is longer than the
    prompt, so there is text to continue. Blocks without such a piece give no prompt.
    """
    chosen: list[int] = []
    prompt_ids: list[NDArray[Any]] = []
    num_prompts, length = min(num_prompts, len(blocks)), blocks.num_beginning + prompt_tokens
    for i in range(num_prompts):
        for block in range(i * len(blocks) // num_prompts, (i + 1) * len(blocks) // num_prompts):
            start = _first_long_segment(blocks.segment_lengths(block), length)
            if start is not None:
                chosen.append(block)
                prompt_ids.append(blocks.input_ids(block, block + 1)[0, start : start + length])
                break
    return PromptSet(prompt_id=chosen, prompt_ids=prompt_ids)


def prompts_from_column(store: TokenStore, num_prompts: int, beginning_ids: Sequence[int] = ()) -> PromptSet:
    """Return the first num_prompts prompts of a column, each with its beginning. prompt_id counts them from 0.

    The store holds them without it; see storage.text.beginnings.
    """
    count = min(num_prompts, len(store.ends))
    beginning = np.array(beginning_ids, dtype=store.tokens.dtype)
    prompt_ids = [np.concatenate([beginning, store.document(i)]) for i in range(count)]
    return PromptSet(prompt_id=list(range(count)), prompt_ids=prompt_ids)


def _first_long_segment(segment_lengths: NDArray[np.int64], num_tokens: int) -> int | None:
    starts = np.cumsum(segment_lengths) - segment_lengths
    long_enough = np.flatnonzero(segment_lengths > num_tokens)
    return int(starts[long_enough[0]]) if len(long_enough) else None
