"""Turn packed texts into rows of soft_targets.

Shape legend: R rows, T targets of a block, E entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from storage.importing.packing import Piece
from storage.importing.source_text import CheckedText, Int64s, joined
from storage.rows.soft_targets import SoftTargetRows

Block = Sequence[Piece[CheckedText]]


def rows_of(blocks: Sequence[Block], first_row_id: int, block_size: int, filler_id: int) -> SoftTargetRows:
    """Return blocks as rows. What a block has left is one segment of `filler_id`, in which nothing is wanted."""
    size_RT = np.stack([_spread(block, "size", block_size, np.int64) for block in blocks])
    return SoftTargetRows(
        row_id=np.arange(first_row_id, first_row_id + len(blocks)),
        input_ids=np.stack([_input_ids(block, block_size + 1, filler_id) for block in blocks]),
        segment_lengths=[_segment_lengths(block, block_size + 1) for block in blocks],
        is_wanted=np.stack([_spread(block, "is_wanted", block_size, np.bool_) for block in blocks]),
        head_size=size_RT,
        tail_size=np.zeros_like(size_RT),
        ids=joined([_entries(piece, "ids") for block in blocks for piece in block], np.int64),
        logprobs=joined([_entries(piece, "logprobs") for block in blocks for piece in block], np.float64),
        tail_logprob=np.stack([_spread(block, "tail_logprob", block_size, np.float64) for block in blocks]),
        entropy=None,
        label_logprob=np.stack([_spread(block, "label_logprob", block_size, np.float64) for block in blocks]),
        tempered_tail_logmass={},
    )


def _segment_lengths(block: Block, block_tokens: int) -> Int64s:
    lengths = [piece.stop - piece.start for piece in block]
    left = block_tokens - sum(lengths)
    return np.array(lengths + [left] * (left > 0), dtype=np.int64)


def _input_ids(block: Block, block_tokens: int, filler_id: int) -> Int64s:
    ids = np.full(block_tokens, filler_id, dtype=np.int64)
    for start, piece in _places(block):
        ids[start : start + piece.stop - piece.start] = piece.text.input_ids[piece.start : piece.stop]
    return ids


def _spread(block: Block, name: str, block_size: int, dtype: Any) -> Any:
    """Return values per target of the block, 0 at targets between texts and in what is left: [T]."""
    values_T = np.zeros(block_size, dtype=dtype)
    for start, piece in _places(block):
        last = piece.stop - 1
        values_T[start : start + last - piece.start] = getattr(piece.text, name)[piece.start : last]
    return values_T


def _entries(piece: Piece[CheckedText], name: str) -> Any:
    ends = np.cumsum(piece.text.size)
    first = ends[piece.start] - piece.text.size[piece.start]
    return getattr(piece.text, name)[first : ends[piece.stop - 2]]


def _places(block: Block) -> Iterator[tuple[int, Piece[CheckedText]]]:
    start = 0
    for piece in block:
        yield start, piece
        start += piece.stop - piece.start
