"""A torch dataset over a cache: the stream of `teachonce-student train`, as dictionaries of tensors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from storage.errors import ConfigError
from storage.reading.cache import Cache, open_cache
from storage.reading.remote_cache import LocalCopy
from storage.reading.row_stream import RowStream, StreamState
from student.loops.errors import UnbatchedKindError
from student.loops.kinds import BATCHES


class CacheDataset(IterableDataset[dict[str, Tensor]]):
    """Shuffled batches of a cache, for torch.utils.data.DataLoader with batch_size=None or for a loop of your own.

    An item is a whole batch: this rank's rows of a global batch. With B rows of T positions, it holds for soft_targets

    - input_ids [B, T] int64, position_ids [B, T] int64: what the model's body reads. Positions start again at 0 at each
      document of a block. `student.hidden_states` keeps documents apart in every model; a body with plain attention
      does so by itself if it gets neither an attention mask nor a key-value cache.
    - labels [B, T] int64: the token after position t, and −100 where nothing is to be learnt: the next token is in
      another document, or unwanted. Labels are shifted already, so do not give them to a model of transformers, which
      would shift them again.
    - head_ids [B, T, K] int32, head_logprobs [B, T, K] float32 (nats), is_head [B, T, K] bool: ids that the teacher's
      probability is kept of; is_head is False at padding.
    - tail_logprob [B, T] float32: log of the probability of all other ids, in nats.
    - tail_ids [B, T, J] int32, is_drawn [B, T, J] bool, tail_weight [B] float32: ids drawn from the tail, and the
      probability that each stands for. They are missing unless the tail was drawn at `temperature`.
    - tail_logmass_at_… [B, T] float32, for a temperature T other than 1: log Σ p^(1/T) over the tail.
    - entropy [B, T] float32: the teacher's entropy at temperature 1, in nats; missing where the cache does not know it.

    and for samples input_ids, position_ids and labels alone; labels are the tokens of the completion, and texts are
    padded on the right. K, J (and T for samples) are the largest of the batch. What the body gives at position t is
    what labels and targets at t are about. `student.distillation_loss` reads these batches.

    The rows and their order are those of `teachonce-student train` for the same seed and batch_rows. Rank r of W gets
    rows r, r + W, … of each global batch, and the workers of a DataLoader take turns. So the global batches are the
    same for any number of ranks and workers.

    An iteration runs through epoch after epoch, each in another order of rows, without end or to the end of epoch
    num_epochs. A batch may span two epochs, and so the last one may hold rows of the epoch after. Every iteration
    begins at the same place: the beginning, or where load_state_dict says.
    """

    def __init__(
        self,
        cache: str | Path,
        kind: str = "soft_targets",
        split: str = "train",
        *,
        batch_rows: int,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        shuffle: bool = True,
        temperature: float = 1.0,
        num_epochs: int | None = None,
        num_vocabulary_rows: int | None = None,
        local_copy: LocalCopy | None = None,
    ) -> None:
        """Open a cache: a directory, or any URL that fsspec reads.

        batch_rows: rows of a global batch, over all ranks; rank, world_size: None for those of torch.distributed when
        an iteration begins; temperature: that of the loss; num_epochs: None for no end;
        num_vocabulary_rows: rows of the student's vocabulary, if the cache may hold ids beyond them (None: it holds
        none); local_copy: where the shards of a URL are copied to.

        Raise UnbatchedKindError, MissingKindError, ConfigError, the errors of open_cache, and UnservedTemperatureError
        when the cache cannot serve the temperature.
        """
        if kind not in BATCHES:
            raise UnbatchedKindError(kind, list(BATCHES))
        if batch_rows < 1:
            raise ConfigError(f"batch_rows is {batch_rows}, expected at least 1")
        if (rank is None) != (world_size is None):
            raise ConfigError("rank and world_size belong together: give both, or none to ask torch.distributed")
        self._path, self._local_copy = str(cache), local_copy
        self.cache, self._opened_by = open_cache(cache, local_copy=local_copy), os.getpid()
        self.batch_rows, self.num_vocabulary_rows = batch_rows, num_vocabulary_rows
        self._kind, self._split, self._seed, self._shuffle = kind, split, seed, shuffle
        self._rank, self._world_size = rank, world_size
        self._tensors = BATCHES[kind](self.cache, temperature, num_vocabulary_rows)
        self._num_epochs = num_epochs
        self._stream = self._stream_of(0, 1)
        # Epoch and position where iterations begin. In shared memory, so that workers that stay see a later one.
        self._begin = torch.zeros(2, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._resumed: StreamState | None = None
        self._next: StreamState | None = None

    @property
    def num_rows(self) -> int:
        """Number of rows in an epoch."""
        return self._stream.num_rows

    def __len__(self) -> int:
        """Return the number of batches from the first to the end of epoch num_epochs; TypeError when there is no end.

        What load_state_dict leaves out counts too.
        """
        if self._num_epochs is None:
            raise TypeError("a CacheDataset without num_epochs has no end, and so no length")
        return -(-self._num_epochs * self.num_rows // self.batch_rows)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Return this reader's batches from the beginning, or from where load_state_dict says.

        Raise ConfigError when some rank would get no rows.
        """
        worker = get_worker_info()
        begin, self._resumed = self._resumed or self._stream.after(self._read_begin(), worker.id if worker else 0), None
        self._next = begin
        return self._batches(begin, worker.num_workers if worker else 1)

    def state_dict(self) -> dict[str, int]:
        """Return where this process's next batch begins: {"epoch": …, "position": …}, the same on every rank.

        Batches that a DataLoader has read ahead count as read. With worker processes, use state_after with the number
        of batches that the loop has had, or a StatefulDataLoader of torchdata.
        """
        return vars(self._next or self._read_begin()).copy()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Begin iterations at a state, which any number of ranks has left (of state_after: also any of workers).

        In a worker of a StatefulDataLoader, only its next iteration begins there.
        """
        found = StreamState(epoch=state["epoch"], position=state["position"])
        if get_worker_info() is None:
            self._begin.copy_(torch.tensor([found.epoch, found.position]))
            self._next = None
        else:
            self._resumed = self._next = found

    def state_after(self, num_batches: int) -> dict[str, int]:
        """Return the state after the first num_batches global batches of an iteration."""
        return vars(self._stream.after(self._read_begin(), num_batches)).copy()

    def reader(self) -> tuple[int, int]:
        """Return rank and world size: those given, or those of torch.distributed now."""
        if self._rank is not None and self._world_size is not None:
            return self._rank, self._world_size
        is_one_of_several = dist.is_available() and dist.is_initialized()
        return (dist.get_rank(), dist.get_world_size()) if is_one_of_several else (0, 1)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a new process needs. Workers that are not forked do not know torch.distributed's rank."""
        rank, world_size = self.reader()
        return vars(self) | {"cache": None, "_stream": None, "_rank": rank, "_world_size": world_size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._opened_by = 0
        self._stream = self._stream_of(0, 1)

    def _batches(self, begin: StreamState, num_workers: int) -> Iterator[dict[str, Tensor]]:
        rank, world_size = self.reader()
        if world_size > self.batch_rows:
            raise ConfigError(f"batch_rows is {self.batch_rows}, expected at least 1 for each of {world_size} ranks")
        stream = self._stream_of(rank, world_size).batches(begin, every=num_workers)
        with contextlib.closing(stream):  # type: ignore[type-var]
            while self._num_epochs is None or begin.epoch < self._num_epochs:
                rows = next(stream).rows
                self._next = begin = self._stream.after(begin, num_workers)
                yield self._tensors(rows)

    def _read_begin(self) -> StreamState:
        epoch, position = self._begin.tolist()
        return StreamState(epoch=epoch, position=position)

    def _stream_of(self, rank: int, world_size: int) -> RowStream:
        return RowStream(
            self._cache_here(),
            self._kind,
            self._split,
            batch_rows=self.batch_rows,
            seed=self._seed,
            rank=rank,
            world_size=world_size,
            shuffle=self._shuffle,
        )

    def _cache_here(self) -> Cache:
        """Return the cache, opened by this process: threads that download shards do not survive a fork."""
        if self._opened_by != os.getpid():
            self.cache, self._opened_by = open_cache(self._path, local_copy=self._local_copy), os.getpid()
        return self.cache
