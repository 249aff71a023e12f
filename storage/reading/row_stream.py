"""An endless, shuffled, resumable stream of rows; its order does not depend on the number of readers that share it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.reading.cache import Cache
from storage.reading.epoch_order import EpochOrder
from storage.reading.read_ahead import ReadAhead
from storage.shards.shard import BATCH_MEMORY


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """The state of a stream: all readers together have received the first `position` rows of epoch `epoch`."""

    epoch: int = 0
    position: int = 0


@dataclass(frozen=True, kw_only=True)
class StreamBatch:
    """One reader's rows of one step, and the state of the stream after the step."""

    rows: pa.RecordBatch
    next_state: StreamState


class RowStream:
    """An endless stream of global batches of `batch_rows` rows of one kind and split.

    Epochs follow one another, and a global batch may span two. Reader `rank` of `world_size` gets rows rank,
    rank + world_size, … of each global batch. So all readers together get the same rows for any world_size. A
    thread reads and decompresses the record batches that this reader needs, in order of need, up to a window ahead.
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
        self._schema = cache.identity.schema(kind)
        self._batch_rows, self._seed, self._shuffle = batch_rows, seed, shuffle
        self._rank, self._world_size = rank, world_size

    @functools.cached_property
    def num_rows(self) -> int:
        """Number of rows in an epoch."""
        return sum(shard.num_rows for shard in self._shards)

    def batches(self, start: StreamState | None = None, *, every: int = 1) -> Iterator[StreamBatch]:
        """Yield batches from `start` on, without end.

        every: 1 for all batches; n for the first and then every n-th, as n processes that take turns need.
        """
        state = start or StreamState()
        reading = ReadAhead(self._cache, self._shards, self._order, functools.partial(self._is_mine, every))
        rows = reading.rows_from(state.epoch, state.position)
        num_mine = len(range(self._rank, self._batch_rows, self._world_size))
        while True:
            yield StreamBatch(rows=self._joined(list(islice(rows, num_mine))), next_state=self.after(state, 1))
            state = self.after(state, every)

    def after(self, state: StreamState, num_batches: int) -> StreamState:
        """Return the state of the stream `num_batches` global batches after `state`."""
        epochs, position = divmod(state.position + num_batches * self._batch_rows, self.num_rows)
        return StreamState(epoch=state.epoch + epochs, position=position)

    def _is_mine(self, every: int, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether this reader gets each row. `rows` are counted from the beginning of a global batch."""
        batches, rows_of_batch = np.divmod(rows, self._batch_rows)
        is_mine: NDArray[np.bool_] = (batches % every == 0) & (rows_of_batch % self._world_size == self._rank)
        return is_mine

    def _joined(self, rows: list[pa.RecordBatch]) -> pa.RecordBatch:
        if not rows:
            return pa.RecordBatch.from_pylist([], schema=self._schema)
        return pa.concat_batches(rows, memory_pool=BATCH_MEMORY)

    def _order(self, epoch: int) -> EpochOrder:
        rows = self._cache.identity.record_batch_rows
        return EpochOrder(self._shards, rows, seed=self._seed, epoch=epoch, shuffle=self._shuffle)
