"""Rows of top-k lists out of rows of soft targets: one for each text, or for the piece of one that lies in a block.

Shape legend: L tokens of a piece, P positions of blocks, H entries of heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.errors import ConfigError
from storage.rows import columns, soft_targets
from storage.rows.soft_targets import SoftTargetRows

_UNTAUGHT = -100
# Of entries that fill up a list. Finite, because 0 · ∞ is NaN in the losses of most trainers.
_NO_PROBABILITY = -1e9


@dataclass(frozen=True, kw_only=True)
class TopkLayout:
    """Names of the columns, and what their lists hold.

    alignment: whether the lists at position t are about token t + 1 (next) or t (same). top_k: entries of every list,
    the most probable ones, filled up by other ids without probability; None gives each position what the cache has.
    """

    alignment: Literal["next", "same"] = "next"
    ids_column: str = "ids"
    logprobs_column: str = "logprobs"
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"--top-k is {self.top_k}, expected at least 1")

    @property
    def schema(self) -> pa.Schema:
        """Plain lists, which every reader of Parquet takes."""
        ints = pa.list_(pa.int32())
        return pa.schema(
            [
                ("input_ids", ints),
                ("labels", ints),
                (self.ids_column, pa.list_(ints)),
                (self.logprobs_column, pa.list_(pa.list_(pa.float32()))),
            ]
        )


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The exported entries, most probable first in each position: size [P]; position, ids, logprobs [H]."""

    size: NDArray[np.int64]
    position: NDArray[np.int64]
    ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]


def heads_of(rows: SoftTargetRows, top_k: int | None) -> Heads:
    """Return the heads of all positions of rows, at most the top_k most probable entries of each."""
    is_head = soft_targets.head_mask(rows)
    size = rows.head_size.reshape(-1)
    position = np.repeat(np.arange(len(size)), size)
    order = np.lexsort((-rows.logprobs.astype(np.float32), position))
    if top_k is not None:
        first = np.repeat(np.cumsum(size) - size, size)
        order = order[np.arange(len(order)) - first < top_k]
        size = np.minimum(size, top_k)
    return Heads(
        size=size,
        position=position[order],
        ids=rows.ids[is_head][order].astype(np.int64),
        logprobs=rows.logprobs[order].astype(np.float32),
    )


def topk_batch(rows: SoftTargetRows, kept: Heads, layout: TopkLayout) -> pa.RecordBatch:
    """Return one row for each piece of a text with a taught target."""
    places = list(_places(rows))
    size_RT = kept.size.reshape(rows.head_size.shape)
    position_sizes = _with_nothing([size_RT[row, start : end - 1] for row, start, end in places], layout)
    if layout.top_k is not None:
        kept = _filled(kept, position_sizes, layout.top_k)
        position_sizes = np.full(len(position_sizes), layout.top_k)
    offsets = columns.offsets_of(np.array([end - start for _, start, end in places], dtype=np.int64))
    input_ids = [rows.input_ids[row, start:end].astype(np.int32) for row, start, end in places]
    valid_RT = rows.is_valid_target
    labels = [_labels(rows, valid_RT, *place) for place in places]
    list_offsets = columns.offsets_of(position_sizes)
    arrays = [
        _lists(_joined(input_ids), offsets),
        _lists(_joined(labels), offsets),
        _lists(_lists(kept.ids.astype(np.int32), list_offsets), offsets),
        _lists(_lists(kept.logprobs, list_offsets), offsets),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=layout.schema)


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([np.empty(0, np.int32), *parts])


def _lists(values: Any, offsets: NDArray[np.int64]) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


def _places(rows: SoftTargetRows) -> Iterator[tuple[int, int, int]]:
    """Yield row, first token and end of each piece with a taught target."""
    valid_RT = rows.is_valid_target
    for row, lengths in enumerate(rows.segment_lengths):
        ends = np.cumsum(lengths)
        for start, end in zip(ends - lengths, ends, strict=True):
            if valid_RT[row, start : end - 1].any():
                yield row, int(start), int(end)


def _labels(rows: SoftTargetRows, valid_RT: NDArray[np.bool_], row: int, start: int, end: int) -> NDArray[np.int32]:
    """Return the token itself where it is taught, else -100: [L]."""
    is_taught = valid_RT[row, start : end - 1]
    ids = rows.input_ids[row, start + 1 : end].astype(np.int32)
    return np.concatenate([[_UNTAUGHT], np.where(is_taught, ids, _UNTAUGHT)]).astype(np.int32)


def _with_nothing(sizes: list[NDArray[np.int64]], layout: TopkLayout) -> NDArray[np.int64]:
    """Join the sizes of all pieces, each with an empty list for the position that is about no token."""
    nothing = np.zeros(1, np.int64)
    pairs = [(nothing, size) if layout.alignment == "same" else (size, nothing) for size in sizes]
    return np.concatenate([np.empty(0, np.int64), *(part for pair in pairs for part in pair)])


def _filled(kept: Heads, sizes: NDArray[np.int64], top_k: int) -> Heads:
    """Return lists of top_k entries each. The ids that fill one up are the lowest that it does not hold."""
    ids = np.tile(np.arange(top_k), (len(sizes), 1))
    logprobs = np.full(ids.shape, _NO_PROBABILITY, dtype=np.float32)
    is_kept = np.arange(top_k) < sizes[:, None]
    ids[is_kept], logprobs[is_kept] = kept.ids, kept.logprobs
    for place in np.flatnonzero((sizes > 0) & (sizes < top_k)):
        free = np.setdiff1d(np.arange(2 * top_k), ids[place, : sizes[place]])
        ids[place, sizes[place] :] = free[: top_k - sizes[place]]
    return Heads(size=sizes, position=kept.position, ids=ids.reshape(-1), logprobs=logprobs.reshape(-1))
