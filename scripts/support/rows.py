"""Rows that every storage format holds: blocks of token ids with sparse soft targets, computed from seed and row id."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

VOCAB_SIZE = 50257
BLOCK_SIZE = 16
NUM_ROWS = 512
ROWS_PER_SHARD = 64
SHARD_BYTES = 31_000
"""Limit of a shard for the other libraries, which limit bytes: about as many rows as in a shard of ours."""

Row = dict[str, Any]
"""row_id (int) and the arrays of a soft_targets row, with their names from storage/FORMAT.md."""


@dataclass(frozen=True, kw_only=True)
class RowSet:
    """Rows 0 to num_rows - 1.

    make_row: returns the row of a row id; shard_bytes: largest shard of another library.
    """

    num_rows: int
    shard_bytes: int
    make_row: Callable[[int], Row]


ARRAY_TYPES = {
    "input_ids": "uint16",
    "segment_lengths": "uint32",
    "head_size": "uint16",
    "tail_size": "uint16",
    "ids": "uint16",
    "logprobs": "float16",
    "tail_logprob": "float16",
    "entropy": "float16",
    "label_logprob": "float16",
}

OTHER_COLUMNS = "other columns or types"
"""The fingerprint of a value that lacks the columns or types of a row. A training run would fail on such a value."""

_SMALLEST_HEAD, _LARGEST_HEAD = 2, 4
_LARGEST_TAIL = 3
_LEAST_WEIGHT = 0.01


def made_up_rows(seed: int) -> RowSet:
    """Return the rows that trials write, damage and read."""
    return RowSet(num_rows=NUM_ROWS, shard_bytes=SHARD_BYTES, make_row=functools.partial(make_row, seed))


@functools.cache
def make_row(seed: int, row_id: int) -> Row:
    """Return a valid row whose head and tail sizes vary from target to target.

    The row is kept for later calls: do not change it.
    """
    rng = np.random.default_rng([seed, row_id])
    head_size = rng.integers(_SMALLEST_HEAD, _LARGEST_HEAD + 1, BLOCK_SIZE)
    tail_size = rng.integers(0, _LARGEST_TAIL + 1, BLOCK_SIZE)
    # Take one id from each of several equal parts of the vocabulary: ids are distinct, and ascending in head and tail.
    rank = np.arange(_LARGEST_HEAD + _LARGEST_TAIL)
    part = VOCAB_SIZE // len(rank)
    ids = rank * part + rng.integers(0, part, (BLOCK_SIZE, len(rank)))
    in_head = np.arange(_LARGEST_HEAD) < head_size[:, None]
    head_weight = np.where(in_head, rng.exponential(size=in_head.shape) + _LEAST_WEIGHT, 0)
    rest_weight = rng.exponential(size=BLOCK_SIZE) + _LEAST_WEIGHT
    total = rest_weight + head_weight.sum(1)
    values = {
        "input_ids": rng.integers(0, VOCAB_SIZE, BLOCK_SIZE + 1),
        "segment_lengths": [BLOCK_SIZE + 1],
        "head_size": head_size,
        "tail_size": tail_size,
        "ids": ids[rank < (head_size + tail_size)[:, None]],
        "logprobs": np.log((head_weight / total[:, None])[in_head]),
        "tail_logprob": np.log(rest_weight / total),
        "entropy": rng.uniform(0, 10, BLOCK_SIZE),
        "label_logprob": -rng.exponential(size=BLOCK_SIZE),
    }
    return {"row_id": row_id} | {name: np.array(values[name], ARRAY_TYPES[name]) for name in ARRAY_TYPES}


def fingerprint(row: Any) -> str:
    """Return the hex sha256 of a row's values and shapes, or OTHER_COLUMNS when names or types differ from a row's."""
    if not isinstance(row, dict) or row.keys() != {"row_id", *ARRAY_TYPES} or not isinstance(row["row_id"], int):
        return OTHER_COLUMNS
    arrays = [np.asarray(row[name]) for name in ARRAY_TYPES]
    if [array.dtype for array in arrays] != list(ARRAY_TYPES.values()):
        return OTHER_COLUMNS
    content = [repr((row["row_id"], [array.shape for array in arrays])).encode(), *(a.tobytes() for a in arrays)]
    return hashlib.sha256(b"".join(content)).hexdigest()
