"""An endless, shuffled, resumable stream of rows, the same however many readers share it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from storage.cache import Cache
from storage.epoch_order import EpochOrder, Window
from storage.shard import Shard


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """Where a stream stands: `position` rows of epoch `epoch` have been handed out to all readers."""

    epoch: int = 0
    position: int = 0


@dataclass(frozen=True, kw_only=True)
class StreamBatch:
    """Rows of one step for one reader, and the state after the step."""

    rows: pa.RecordBatch
    next_state: StreamState


class RowStream:
    """Global batches of `batch_rows` rows of one kind and split, without end.

    Epoch follows epoch and a global batch may span two. Reader `rank` of `world_size` gets rows
    rank, rank + world_size, … of each global batch, so the union over readers never changes. A thread
    reads, decompresses and checks the next window while the present one is in use.
    """

    def __init__(
        self,
        cache: Cache,
        kind: str,
        split: str,
        *,
        batch_rows: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ) -> None:
        self._cache = cache
        self._shards = cache.shards(kind, split)
        self._batch_rows, self._seed, self._shuffle = batch_rows, seed, shuffle
        self._rank, self._world_size = rank, world_size
        self._opened: dict[int, Shard] = {}

    @functools.cached_property
    def num_rows(self) -> int:
        """Rows in an epoch."""
        return sum(shard.num_rows for shard in self._shards)

    def batches(self, start: StreamState | None = None) -> Iterator[StreamBatch]:
        """Batches from `start` on."""
        state = start or StreamState()
        pieces = self._pieces(state)
        pending: list[pa.Table] = []
        num_pending = 0
        while True:
            while num_pending < self._batch_rows:
                piece = next(pieces)
                pending.append(piece)
                num_pending += piece.num_rows
            table = pa.concat_tables(pending)
            state = self._advance(state)
            mine = np.arange(self._rank, self._batch_rows, self._world_size)
            chosen = table.slice(0, self._batch_rows).take(mine)
            (rows,) = chosen.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
            yield StreamBatch(rows=rows, next_state=state)
            pending, num_pending = [table.slice(self._batch_rows)], num_pending - self._batch_rows

    def _advance(self, state: StreamState) -> StreamState:
        epochs, position = divmod(state.position + self._batch_rows, self.num_rows)
        return StreamState(epoch=state.epoch + epochs, position=position)

    def _pieces(self, state: StreamState) -> Iterator[pa.Table]:
        """Shuffled rows window by window; the next window is read ahead in a thread."""
        windows = self._windows(state)
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="teachonce-reader") as executor:
                ahead: Future[pa.Table] = executor.submit(self._read_next, windows)
                while True:
                    table = ahead.result()
                    ahead = executor.submit(self._read_next, windows)
                    yield table
        finally:
            self._close()

    def _windows(self, state: StreamState) -> Iterator[tuple[Window, int]]:
        """Windows from `state` on, each with the number of its rows to skip."""
        while True:
            order = self._order(state.epoch)
            position = state.position
            while position < order.num_rows:
                self._turn_to(order, state.epoch, position)
                # Opening a shard proves that it holds what the manifest counts, before as much is allotted.
                for index in order.group_at(position)[0]:
                    self._shard(index)
                for window in order.windows_from(position):
                    yield window, position - window.first_position
                    position = window.first_position + len(window.row_order)
            state = dataclasses.replace(state, epoch=state.epoch + 1, position=0)

    def _order(self, epoch: int) -> EpochOrder:
        rows = self._cache.identity.record_batch_rows
        return EpochOrder(self._shards, rows, seed=self._seed, epoch=epoch, shuffle=self._shuffle)

    def _read_next(self, windows: Iterator[tuple[Window, int]]) -> pa.Table:
        window, skipped = next(windows)
        batches = [self._shard(shard).read_batch(batch) for shard, batch in window.batches]
        return pa.Table.from_batches(batches).combine_chunks().take(window.row_order[skipped:])

    def _turn_to(self, order: EpochOrder, epoch: int, position: int) -> None:
        """Close shards of the groups before the one that holds `position`; ask for those of the next."""
        members, next_position = order.group_at(position)
        for index in [index for index in self._opened if index not in members]:
            self._cache.close_shard(self._opened.pop(index))
        if next_position == order.num_rows:
            order, next_position = self._order(epoch + 1), 0
        upcoming, _ = order.group_at(next_position)
        self._cache.files.prefetch(self._shards[index] for index in [*members, *upcoming])

    def _shard(self, index: int) -> Shard:
        if index not in self._opened:
            self._opened[index] = self._cache.open_shard(self._shards[index])
        return self._opened[index]

    def _close(self) -> None:
        while self._opened:
            self._cache.close_shard(self._opened.popitem()[1])
