"""Read the rows of a stream in a thread, before they are used."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.reading.cache import Cache
from storage.reading.checks import Check, Checks
from storage.reading.epoch_order import SHARDS_PER_GROUP, EpochOrder, Window
from storage.reading.proofs import Proofs
from storage.records.identity import ShardRecord
from storage.shards.shard import Shard


@dataclass(frozen=True, kw_only=True)
class _WindowInReading:
    """The wanted rows of a window, in the stream's order, and the record batches that hold them, in order of need.

    places: (key of `batches`, row of that record batch) of each wanted row; batches: read and checked; checks: of those
    that were not checked before, by the same keys.
    """

    places: list[tuple[int, int]]
    batches: dict[int, Future[pa.RecordBatch]]
    checks: Checks

    def rows(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows at places[start:stop], each a slice of its record batch, once that is read and checked."""
        for batch, row in self.places[start:stop]:
            self.checks.run_needed(batch)
            yield self.batches[batch].result().slice(row, 1)


class ReadAhead:
    """The wanted rows of one epoch after the other, in order, from a position on.

    In the middle of each window a reader thread begins the next window. It reads and decompresses the window's record
    batches in the order in which they are needed. Then it checks them, beginning with the one that is needed last. A
    record batch that is needed before its turn is checked by the thread that needs it: so neither waits for the other.
    More threads would spend their time on handing each other Python's global interpreter lock.
    """

    def __init__(
        self,
        cache: Cache,
        shards: tuple[ShardRecord, ...],
        order_of: Callable[[int], EpochOrder],
        is_wanted: Callable[[NDArray[np.int64]], NDArray[np.bool_]],
    ) -> None:
        """order_of: returns the order of an epoch over `shards`.

        is_wanted: returns which of the rows with these numbers to yield. Row 0 is the first row from the start on.
        """
        self._cache, self._shards, self._order_of, self._is_wanted = cache, shards, order_of, is_wanted
        self._num_passed = 0
        self._opened: dict[int, Shard] = {}
        # By index of the shard: a byte for each record batch, 1 when checked. The bytes outlive the open shard. So each
        # record batch is checked once, as is the sha256 of a shard's file.
        self._is_checked: dict[int, bytearray] = {}
        self._proofs = Proofs()
        self._is_closed = False
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="teachonce-reader")

    def rows_from(self, epoch: int, position: int) -> Iterator[pa.RecordBatch]:
        """Yield each wanted row as a slice of its record batch. Call this once: its end stops the thread."""
        windows = self._windows_from(epoch, position)
        try:
            ahead = self._reader.submit(self._begin_next, windows)
            while True:
                window = ahead.result()
                # By the middle of a shuffled window, rows of all its record batches have been needed. So reading ahead
                # from there delays none of them.
                middle = len(window.places) // 2
                yield from window.rows(0, middle)
                ahead = self._reader.submit(self._begin_next, windows)
                yield from window.rows(middle, len(window.places))
        finally:
            self._close()

    def _begin_next(self, windows: Iterator[tuple[Window, int]]) -> _WindowInReading:
        """Queue the record batches of the next window that hold wanted rows, in the order in which they are needed."""
        if self._is_closed:
            raise CancelledError
        window, position = next(windows)
        positions = np.arange(position, window.first_position + len(window.row_order))
        is_wanted = self._is_wanted(self._num_passed + positions - position)
        self._num_passed += len(positions)
        places = window.places(positions[is_wanted])
        batches: dict[int, Future[pa.RecordBatch]] = {}
        checks: dict[int, Check] = {}
        for key in dict.fromkeys(batch for batch, _ in places):
            index, batch = window.batches[key]
            batches[key] = self._reader.submit(self._read, self._opened[index], batch)
            if not self._is_checked[index][batch]:
                checks[key] = self._check_of(index, batch, batches[key])
                batches[key] = checks[key].done
        window_checks = Checks(checks)
        self._reader.submit(window_checks.run_rest, lambda: self._is_closed)
        return _WindowInReading(places=places, batches=batches, checks=window_checks)

    def _windows_from(self, epoch: int, position: int) -> Iterator[tuple[Window, int]]:
        """Yield windows with open shards, each with the position to begin at."""
        while True:
            order = self._order_of(epoch)
            while position < order.num_rows:
                self._enter_group(order, epoch, position)
                for window in order.windows_from(position):
                    yield window, position
                    position = window.first_position + len(window.row_order)
            epoch, position = epoch + 1, 0

    def _enter_group(self, order: EpochOrder, epoch: int, position: int) -> None:
        """Close shards of other groups, open those of the group that holds `position`, prefetch those of the next.

        All record batches of other groups are read: the same thread did it before. A check needs no open shard.
        """
        members, next_position = order.group_at(position)
        for index in [index for index in self._opened if index not in members]:
            self._cache.close_shard(self._opened.pop(index))
        if next_position == order.num_rows:
            order, next_position = self._order_of(epoch + 1), 0
        upcoming, _ = order.group_at(next_position)
        self._cache.files.prefetch(self._shards[index] for index in [*members, *upcoming])
        self._open(index for index in members if index not in self._opened)

    def _open(self, indices: Iterable[int]) -> None:
        """Open shards in parallel: most of the work is hashing, which keeps a core busy for each shard.

        Opening a shard checks its number of record batches against the manifest, before memory for them is allocated.
        """
        with ThreadPoolExecutor(SHARDS_PER_GROUP, thread_name_prefix="teachonce-opener") as executor:
            for _ in executor.map(self._open_one, indices):
                pass

    def _open_one(self, index: int) -> None:
        shard = self._cache.open_shard(self._shards[index])
        if index not in self._is_checked:
            is_proved = self._proofs.holds(self._cache.identity, shard.record)
            self._is_checked[index] = bytearray([is_proved]) * shard.num_record_batches
        self._opened[index] = shard

    def _check_of(self, index: int, batch: int, read: Future[pa.RecordBatch]) -> Check:
        note = functools.partial(self._note_checked, index, batch)
        return Check(shard=self._opened[index], index=batch, read=read, note=note)

    def _read(self, shard: Shard, batch: int) -> pa.RecordBatch | None:
        return None if self._is_closed else shard.read_unchecked(batch)

    def _note_checked(self, index: int, batch: int) -> None:
        self._is_checked[index][batch] = True
        if all(self._is_checked[index]):
            self._proofs.add(self._cache.identity, self._shards[index])

    def _close(self) -> None:
        self._is_closed = True
        self._reader.shutdown()
        while self._opened:
            self._cache.close_shard(self._opened.popitem()[1])
        self._proofs.close()
