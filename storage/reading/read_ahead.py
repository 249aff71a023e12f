"""Reading the rows of a stream ahead of whoever uses them, in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.reading.cache import Cache
from storage.reading.epoch_order import SHARDS_PER_GROUP, EpochOrder, Window
from storage.records.identity import ShardRecord
from storage.shards.shard import Shard

_NUM_READERS = 2


@dataclass(frozen=True, kw_only=True)
class _WindowInReading:
    """The wanted rows of a window, in the stream's order, and the record batches that hold them, as they get ready.

    places: (key of `batches`, row of that record batch) of each row.
    """

    places: list[tuple[int, int]]
    batches: dict[int, _BatchInReading]

    def rows(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """The rows at these places, each a slice of its record batch."""
        for batch, row in self.places[start:stop]:
            yield self.batches[batch].checked_rows().slice(row, 1)


@dataclass(frozen=True, kw_only=True)
class _BatchInReading:
    """A record batch that is being read. is_checked: of its shard, a byte for each record batch."""

    shard: Shard
    index: int
    is_checked: bytearray
    rows: Future[pa.RecordBatch]

    def checked_rows(self) -> pa.RecordBatch:
        """Its rows, as soon as they are there, checked the first time; raises ShardFormatError or RowError."""
        rows = self.rows.result()
        if not self.is_checked[self.index]:
            self.shard.check(rows, self.index)
            self.is_checked[self.index] = True
        return rows


class ReadAhead:
    """Wanted rows of epoch after epoch from a position on, in their order.

    One thread goes on to the next window in the middle of each; others read and decompress its record batches in the
    order in which they are needed. Who uses rows checks their record batch the first time: checks are many short
    operations, and threads that do such side by side spend almost as long again on handing Python's lock to each other.
    """

    def __init__(
        self,
        cache: Cache,
        shards: tuple[ShardRecord, ...],
        order_of: Callable[[int], EpochOrder],
        is_wanted: Callable[[NDArray[np.int64]], NDArray[np.bool_]],
    ) -> None:
        """order_of: the order of an epoch over `shards`. is_wanted: of rows, counted from where the reading begins."""
        self._cache, self._shards, self._order_of, self._is_wanted = cache, shards, order_of, is_wanted
        self._num_passed = 0
        self._opened: dict[int, Shard] = {}
        # By shard, one byte for each of its record batches; a shard's file is proved once in a process, too.
        self._is_checked: dict[int, bytearray] = {}
        self._in_reading: list[Future[pa.RecordBatch]] = []
        self._is_closed = False
        self._planner = ThreadPoolExecutor(1, thread_name_prefix="teachonce-planner")
        self._readers = ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="teachonce-reader")

    def rows_from(self, epoch: int, position: int) -> Iterator[pa.RecordBatch]:
        """Each wanted row as a slice of its record batch, as soon as that is there; to be called once."""
        windows = self._windows_from(epoch, position)
        try:
            ahead = self._planner.submit(self._begin_next, windows)
            while True:
                window = ahead.result()
                # By the middle of a shuffled window rows of all its record batches were needed: none of them is delayed
                # by what is read ahead.
                middle = len(window.places) // 2
                yield from window.rows(0, middle)
                ahead = self._planner.submit(self._begin_next, windows)
                yield from window.rows(middle, len(window.places))
        finally:
            self._close()

    def _begin_next(self, windows: Iterator[tuple[Window, int]]) -> _WindowInReading:
        """Queue the record batches of the next window that hold wanted rows, those first that are needed first."""
        window, position = next(windows)
        positions = np.arange(position, window.first_position + len(window.row_order))
        is_wanted = self._is_wanted(self._num_passed + positions - position)
        self._num_passed += len(positions)
        places = window.places(positions[is_wanted])
        in_order_of_need = dict.fromkeys(batch for batch, _ in places)
        batches = {batch: self._begin(*window.batches[batch]) for batch in in_order_of_need}
        self._in_reading = [batch.rows for batch in batches.values()]
        return _WindowInReading(places=places, batches=batches)

    def _windows_from(self, epoch: int, position: int) -> Iterator[tuple[Window, int]]:
        """Windows, each with the position to begin at; their shards are open."""
        while True:
            order = self._order_of(epoch)
            while position < order.num_rows:
                self._turn_to(order, epoch, position)
                for window in order.windows_from(position):
                    yield window, position
                    position = window.first_position + len(window.row_order)
            epoch, position = epoch + 1, 0

    def _turn_to(self, order: EpochOrder, epoch: int, position: int) -> None:
        """Close shards of the groups before the one that holds `position`, open its own, ask for those of the next."""
        members, next_position = order.group_at(position)
        wait(self._in_reading)
        for index in [index for index in self._opened if index not in members]:
            self._cache.close_shard(self._opened.pop(index))
        if next_position == order.num_rows:
            order, next_position = self._order_of(epoch + 1), 0
        upcoming, _ = order.group_at(next_position)
        self._cache.files.prefetch(self._shards[index] for index in [*members, *upcoming])
        self._open(index for index in members if index not in self._opened)

    def _open(self, indices: Iterable[int]) -> None:
        """Open shards side by side, for most of it is hashing, which keeps a core busy.

        An opened shard is proved to hold what the manifest counts, before as much is allotted.
        """
        with ThreadPoolExecutor(SHARDS_PER_GROUP, thread_name_prefix="teachonce-opener") as executor:
            for _ in executor.map(self._open_one, indices):
                pass

    def _open_one(self, index: int) -> None:
        shard = self._cache.open_shard(self._shards[index])
        self._is_checked.setdefault(index, bytearray(shard.num_record_batches))
        self._opened[index] = shard

    def _begin(self, index: int, batch: int) -> _BatchInReading:
        shard = self._opened[index]
        rows = self._readers.submit(self._read, shard, batch)
        return _BatchInReading(shard=shard, index=batch, is_checked=self._is_checked[index], rows=rows)

    def _read(self, shard: Shard, batch: int) -> pa.RecordBatch | None:
        return None if self._is_closed else shard.read_unchecked(batch)

    def _close(self) -> None:
        self._is_closed = True
        self._planner.shutdown()
        self._readers.shutdown()
        while self._opened:
            self._cache.close_shard(self._opened.popitem()[1])
