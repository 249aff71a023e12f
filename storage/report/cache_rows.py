"""Read a bounded number of record batches for a cache's report, spread over the shards of each kind.

The report takes distributions from these rows, and exact totals from the manifest. Shape legend: P valid targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.reading.cache import Cache
from storage.records.identity import SPLITS, ShardRecord
from storage.rows import beams, samples, soft_targets
from storage.shards.shard import Shard

# Limits for each kind. A shard is hashed whole before it is read, and downloaded first when the cache is at a URL.
MOST_SHARDS, MOST_RECORD_BATCHES = 4, 32

Floats = NDArray[np.float64]
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How much of a kind was read.

    num_shards: opened shards. total_shards: shards with rows. column_bytes: compressed bytes of each column in the
    opened shards. other_bytes: all other bytes of these shards.
    """

    num_rows: int
    total_rows: int
    num_shards: int
    total_shards: int
    column_bytes: dict[str, int]
    other_bytes: int


@dataclass(frozen=True, kw_only=True)
class SoftTargetsSeen:
    """For each valid target [P]: entropy in nats, entries of the head and of the tail, probability outside the head.

    entropy is None when the cache lacks it.
    """

    coverage: Coverage
    entropy: Floats | None
    head_size: Floats
    tail_size: Floats
    tail_mass: Floats


@dataclass(frozen=True, kw_only=True)
class SamplesSeen:
    """For each text: its length in tokens, and its finish reason."""

    coverage: Coverage
    num_tokens: Floats
    finish_reasons: list[str]


@dataclass(frozen=True, kw_only=True)
class BeamsSeen:
    """For each prompt: its candidates' scores in nats, best first. For each candidate: its length in tokens."""

    coverage: Coverage
    scores: list[list[float]]
    num_tokens: Floats


def look_at_soft_targets(cache: Cache) -> SoftTargetsSeen | None:
    """Read soft targets; return None for a cache without them, or when no row that was read has a valid target."""
    entropy, head_size, tail_size, tail_mass = [], [], [], []
    reader = _CountingReader(cache, "soft_targets")
    for batch in reader.batches():
        rows = soft_targets.decode(batch)
        is_valid = rows.is_valid_target
        if rows.entropy is not None:
            entropy.append(rows.entropy[is_valid].astype(np.float64))
        head_size.append(rows.head_size[is_valid].astype(np.float64))
        tail_size.append(rows.tail_size[is_valid].astype(np.float64))
        tail_mass.append(np.exp(rows.tail_logprob[is_valid].astype(np.float64)))
    if not sum(map(len, head_size)):
        return None
    return SoftTargetsSeen(
        coverage=reader.coverage(),
        entropy=np.concatenate(entropy) if entropy else None,
        head_size=np.concatenate(head_size),
        tail_size=np.concatenate(tail_size),
        tail_mass=np.concatenate(tail_mass),
    )


def look_at_samples(cache: Cache) -> SamplesSeen | None:
    """Read samples; return None for a cache without them."""
    reader = _CountingReader(cache, "samples")
    rows = [row for batch in reader.batches() for row in samples.decode(batch)]
    if not rows:
        return None
    return SamplesSeen(
        coverage=reader.coverage(),
        num_tokens=np.array([len(row.completion_ids) for row in rows], dtype=np.float64),
        finish_reasons=[row.finish_reason for row in rows],
    )


def look_at_beams(cache: Cache) -> BeamsSeen | None:
    """Read beams; return None for a cache without them."""
    reader = _CountingReader(cache, "beams")
    rows = [row for batch in reader.batches() for row in beams.decode(batch)]
    if not rows:
        return None
    return BeamsSeen(
        coverage=reader.coverage(),
        scores=[[candidate.score for candidate in row.candidates] for row in rows],
        num_tokens=np.array([len(c.candidate_ids) for row in rows for c in row.candidates], dtype=np.float64),
    )


class _CountingReader:
    """Read record batches of a kind, and count what was read."""

    def __init__(self, cache: Cache, kind: str) -> None:
        self._cache = cache
        held = [shard for split in SPLITS for shard in cache.manifest.shards_of(kind, split) if shard.num_rows]
        self._held, self._chosen = held, spread(held, MOST_SHARDS)
        self._num_rows, self._stored_bytes = 0, 0
        self._column_bytes: dict[str, int] = {}

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield record batches, at most the same number from each chosen shard."""
        for record in self._chosen:
            shard = self._cache.open_shard(record)
            try:
                self._count_bytes(shard, record)
                for index in spread(range(shard.num_record_batches), MOST_RECORD_BATCHES // len(self._chosen)):
                    batch = shard.read_batch(index)
                    self._num_rows += batch.num_rows
                    yield batch
            finally:
                self._cache.close_shard(shard)

    def _count_bytes(self, shard: Shard, record: ShardRecord) -> None:
        self._stored_bytes += record.shard_bytes
        for name, num_bytes in shard.column_bytes().items():
            self._column_bytes[name] = self._column_bytes.get(name, 0) + num_bytes

    def coverage(self) -> Coverage:
        """Return how much was read so far."""
        return Coverage(
            num_rows=self._num_rows,
            total_rows=sum(shard.num_rows for shard in self._held),
            num_shards=len(self._chosen),
            total_shards=len(self._held),
            column_bytes=self._column_bytes,
            other_bytes=self._stored_bytes - sum(self._column_bytes.values()),
        )


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most `most` items at about equal distances, with the first and (if `most` is above 1) the last."""
    if len(items) <= most:
        return list(items)
    places: list[int] = np.linspace(0, len(items) - 1, most).round().astype(int).tolist()
    return [items[place] for place in places]
