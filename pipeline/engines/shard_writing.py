"""Make the missing shards of a plan: the teacher runs, a thread writes its rows, and another one commits shards.

So at a URL a shard is sent while the teacher makes the next one. At most three shards are on the local disk: one is
sent, one waits, and one is written.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath

import pyarrow as pa

from pipeline.plan import RECORD_BATCH_ROWS, ShardRange
from pipeline.producers.producer import Producer
from pipeline.work.claims import Claims
from pipeline.work.write_behind import write_behind
from storage.records.identity import CacheIdentity, ShardKey
from storage.writing.destinations import Destination

# Tokens that may wait for the writer. A fast GPU makes them in a few seconds.
_MAX_WAITING_TOKENS = 1 << 20
# Written shards that may wait while another is committed.
_MAX_WAITING_SHARDS = 1

Count = Callable[[int, bool], None]
_Part = tuple[ShardRange, pa.RecordBatch]
# A written shard, and the function that commits it.
_Staged = tuple[ShardRange, Callable[[], None]]


def write_missing_shards(
    destination: Destination,
    identity: CacheIdentity,
    producer: Producer,
    shards: Iterable[ShardRange],
    count: Count,
) -> list[ShardRange]:
    """Write and commit the missing shards of one producer: those without a commit record, and those whose file is lost.

    count: called with the number of rows of each record batch that is written and True, and with the number of rows of
    each shard that was committed before and False.

    shards: the next one is asked for as soon as the teacher has made the rows of the one before.

    Returns the shards that were left out because other processes are making them. Call again for them: such a process
    may end without a commit.
    """
    taken = []
    with Claims(destination.work_dir) as claims:
        write = functools.partial(_write, destination, identity, claims=claims, count=count)
        max_waiting = max(1, _MAX_WAITING_TOKENS // (RECORD_BATCH_ROWS * producer.tokens_per_row))
        # After `hurry` the writer still commits complete shards, but it does not wait for a network that fails.
        with write_behind(write, max_waiting, destination.hurry) as put:
            for shard in shards:
                record = destination.read_commit(shard.key)
                if record is None and not claims.take(_claim_name(shard.key)):
                    taken.append(shard)
                    continue
                # Another process may have committed the shard just before it gave back its claim.
                if record is None and (record := destination.read_commit(shard.key)):
                    claims.give_back(_claim_name(shard.key))
                if record is not None:
                    count(record.num_rows, False)
                    continue
                for batch in producer.record_batches(
                    shard.key.split, shard.first_row, shard.end_row, RECORD_BATCH_ROWS
                ):
                    put((shard, batch))
    return taken


def _claim_name(key: ShardKey) -> str:
    return PurePosixPath(key.commit_path).stem


def _write(
    destination: Destination,
    identity: CacheIdentity,
    parts: Iterator[_Part],
    claims: Claims,
    count: Count,
) -> None:
    """Write each shard, and hand it to a thread that commits one after the other."""
    with write_behind(functools.partial(_commit, claims), _MAX_WAITING_SHARDS, destination.hurry) as put:
        for shard, shard_parts in itertools.groupby(parts, key=lambda part: part[0]):
            batches = _counted((batch for _, batch in shard_parts), count)
            put((shard, destination.stage_shard(identity, shard.key, shard.first_row, batches)))


def _commit(claims: Claims, staged: Iterator[_Staged]) -> None:
    for shard, commit in staged:
        commit()
        claims.give_back(_claim_name(shard.key))


def _counted(batches: Iterator[pa.RecordBatch], count: Count) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch
        count(batch.num_rows, True)
