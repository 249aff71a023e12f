"""The order of an epoch: a pure function of the shards, the seed and the epoch, computed without reading a shard.

Shards are permuted. The record batches of each group of SHARDS_PER_GROUP consecutive shards are permuted together. Rows
are permuted inside windows of BATCHES_PER_WINDOW consecutive record batches. To find a position, compute the order of
one group only; so resuming costs the same at every position.

Each of W readers that share a stream takes every W-th row. A reader should not have to decompress every record batch.
Therefore the rows of a window are divided into STRANDS strands, each cut from neighbouring record batches, and
consecutive positions take rows from the strands in turn. If W divides STRANDS, a reader finds its rows in 1/W of the
record batches. The order is the same for any number of readers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.draws import hash_permutation, hash_u64
from storage.records.identity import ShardRecord

SHARDS_PER_GROUP = 4
BATCHES_PER_WINDOW = 64
STRANDS = 16
# Which part of the window's list of rows each strand is: the bits of the strand's number reversed. Consecutive strands
# come from record batches far apart. The strands of one of 2, 4, 8 or 16 readers come from neighbouring ones.
_PLACE_OF_STRAND = np.array([0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15], dtype=np.uint8)
# Bits of a row's index in the largest window: 64 record batches of 65,536 rows are 2**22 rows.
_ROW_BITS = 22

# Purposes: coordinates that make the permutations drawn from one seed independent.
_SHARDS, _BATCHES, _ROWS, _STRANDS = 1, 2, 3, 4


@dataclass(frozen=True, kw_only=True)
class Window:
    """Record batches whose rows are shuffled together.

    batches: (index into the shard list, index of the record batch in its shard); rows_per_batch: number of rows in each
    of them; row_order: permutation of their concatenated rows; first_position: position in the epoch of the window's
    first row.
    """

    batches: tuple[tuple[int, int], ...]
    rows_per_batch: tuple[int, ...]
    row_order: NDArray[np.int64]
    first_position: int

    def places(self, positions: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Return (index into `batches`, row of that record batch) for each position of the epoch."""
        rows = self.row_order[positions - self.first_position]
        ends = np.cumsum(self.rows_per_batch)
        batch = np.searchsorted(ends, rows, side="right")
        first_rows = ends - self.rows_per_batch
        return list(zip(batch.tolist(), (rows - first_rows[batch]).tolist(), strict=True))


class EpochOrder:
    """The order of one epoch over `shards`. With shuffle False it is the stored order."""

    def __init__(
        self, shards: tuple[ShardRecord, ...], record_batch_rows: int, *, seed: int, epoch: int, shuffle: bool
    ) -> None:
        self._shards = shards
        self._record_batch_rows = record_batch_rows
        self._seed, self._epoch, self._shuffle = seed, epoch, shuffle
        self._shard_order = self._permutation(len(shards), _SHARDS, 0)
        rows = np.array([shards[s].num_rows for s in self._shard_order], dtype=np.int64)
        group_ends = np.minimum(np.arange(SHARDS_PER_GROUP, len(rows) + SHARDS_PER_GROUP, SHARDS_PER_GROUP), len(rows))
        self._group_ends = np.cumsum(rows)[group_ends - 1]
        self.num_rows = int(rows.sum())

    def group_at(self, position: int) -> tuple[list[int], int]:
        """Return the indices of the shards in the group that holds `position`, and the position after the group."""
        group = int(np.searchsorted(self._group_ends, position, side="right"))
        return self._members(group), int(self._group_ends[group])

    def windows_from(self, position: int) -> list[Window]:
        """Return the windows of the group that holds `position`, beginning with the window that holds it."""
        group = int(np.searchsorted(self._group_ends, position, side="right"))
        return [w for w in self._group_windows(group) if w.first_position + len(w.row_order) > position]

    def _group_windows(self, group: int) -> list[Window]:
        members = self._members(group)
        per_batch = self._record_batch_rows
        batches = [
            (shard, batch, min(per_batch, self._shards[shard].num_rows - batch * per_batch))
            for shard in members
            for batch in range(-(-self._shards[shard].num_rows // per_batch))
        ]
        batches = [batches[i] for i in self._permutation(len(batches), _BATCHES, group)]
        windows = []
        first_position = int(self._group_ends[group - 1]) if group else 0
        for start in range(0, len(batches), BATCHES_PER_WINDOW):
            chosen = batches[start : start + BATCHES_PER_WINDOW]
            rows_per_batch = tuple(rows for _, _, rows in chosen)
            windows.append(
                Window(
                    batches=tuple((shard, batch) for shard, batch, _ in chosen),
                    rows_per_batch=rows_per_batch,
                    row_order=self._row_order(rows_per_batch, first_position),
                    first_position=first_position,
                )
            )
            first_position += sum(rows_per_batch)
        return windows

    def _row_order(self, rows_per_batch: tuple[int, ...], first_position: int) -> NDArray[np.int64]:
        """Return the order of a window's rows: int64 [rows of the window].

        Shuffle the rows of each record batch and list them batch after batch. Cut the list into strands, in the
        order of _PLACE_OF_STRAND, and shuffle each strand. A position takes the next row of the strand with the number
        (position in the stream) modulo STRANDS.
        """
        rows = np.arange(sum(rows_per_batch))
        if not self._shuffle:
            return rows
        batch_of_row = np.repeat(np.arange(len(rows_per_batch)), rows_per_batch)
        batch_by_batch = self._shuffled_within(batch_of_row, _ROWS, first_position)
        # Count rows from the beginning of the stream, as readers do.
        place = _PLACE_OF_STRAND[(self._epoch * self.num_rows + first_position + rows) % STRANDS]
        strand_by_strand = np.argsort(place, kind="stable")
        shuffled = self._shuffled_within(place[strand_by_strand], _STRANDS, first_position)
        row_order = np.empty_like(rows)
        row_order[strand_by_strand] = batch_by_batch[shuffled]
        return row_order

    def _shuffled_within(self, groups: NDArray[np.integer[Any]], purpose: int, window: int) -> NDArray[np.int64]:
        """Return the order that sorts rows by group, at most 256 groups, and at random within each group.

        A row's sort key is its group (8 bits), a random number (34 bits) and its index (_ROW_BITS bits). No two keys
        are equal.
        """
        rows = np.arange(len(groups), dtype=np.uint64)
        chance = (
            hash_u64(self._seed, self._epoch, purpose, window, rows) >> np.uint64(8 + _ROW_BITS) << np.uint64(_ROW_BITS)
        )
        return np.argsort((groups.astype(np.uint64) << np.uint64(56)) | chance | rows)

    def _members(self, group: int) -> list[int]:
        return [int(s) for s in self._shard_order[group * SHARDS_PER_GROUP : (group + 1) * SHARDS_PER_GROUP]]

    def _permutation(self, size: int, purpose: int, place: int) -> NDArray[np.int64]:
        if not self._shuffle:
            return np.arange(size)
        return hash_permutation(size, self._seed, self._epoch, purpose, place)
