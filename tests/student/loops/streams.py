"""Read a CacheDataset in several ranks and workers, and put the global batches together again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from storage import Cache
from student import CacheDataset

Batch = dict[str, Tensor]
Rows = list[tuple[int, ...]]


def dataset_of(cache: Cache, rank: int | None = None, world_size: int | None = None, **changes: Any) -> CacheDataset:
    settings: dict[str, Any] = {"batch_rows": 6, "seed": 3} | changes
    return CacheDataset(cache.path, rank=rank, world_size=world_size, **settings)


def ranks_of(cache: Cache, world_size: int, **changes: Any) -> list[CacheDataset]:
    return [dataset_of(cache, rank, world_size, **changes) for rank in range(world_size)]


def loader_of(dataset: CacheDataset, num_workers: int, **settings: Any) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=None, num_workers=num_workers, **settings)


def rows_of(batch: Batch) -> Rows:
    return [tuple(row) for row in batch["input_ids"].tolist()]


def joined(batches_of_ranks: Iterable[Iterable[Batch]]) -> Iterator[Rows]:
    """Yield global batches: rank r of W has rows r, r + W, …"""
    for batches in zip(*batches_of_ranks, strict=True):
        parts = [rows_of(batch) for batch in batches]
        widest = max(map(len, parts))
        yield [part[i] for i in range(widest) for part in parts if i < len(part)]


def take(ranks: list[CacheDataset], num_workers: int, count: int) -> list[Rows]:
    """The first global batches of an iteration."""
    loaders = [iter(loader_of(dataset, num_workers)) for dataset in ranks]
    return list(islice(joined(loaders), count))


def iteration(ranks: list[CacheDataset], num_workers: int) -> list[Rows]:
    return list(joined([loader_of(dataset, num_workers) for dataset in ranks]))
