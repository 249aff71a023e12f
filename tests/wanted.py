"""Caches in which only some targets are wanted, made of caches in which all are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage import Cache, open_cache
from storage.records.commits import write_commit
from storage.rows import soft_targets
from storage.rows.soft_targets import SoftTargetRows
from storage.shards.shard import write_shard
from storage.sharing.tokenizer_copy import copy_tokenizer
from storage.writing.directory_destination import DirectoryDestination

# Which targets of some rows are wanted, [R, T].
Choose = Callable[[SoftTargetRows], NDArray[np.bool_]]


def every(rows: SoftTargetRows) -> NDArray[np.bool_]:
    """Want every target."""
    return np.ones(rows.head_size.shape, np.bool_)


def some(rows: SoftTargetRows) -> NDArray[np.bool_]:
    """Want about 40 % of the targets, and none in every fourth row."""
    flags = [np.random.default_rng([7, int(row_id)]).random(rows.head_size.shape[1]) < 0.4 for row_id in rows.row_id]
    return np.stack(flags) & (rows.row_id % 4 != 1)[:, None]


def none(rows: SoftTargetRows) -> NDArray[np.bool_]:
    """Want nothing."""
    return ~every(rows)


def marked(cache: Cache, out: Path, choose: Choose) -> Cache:
    """The same cache with the column is_wanted, without the entries of unwanted targets."""
    settings = cache.identity.config["soft_targets"] | {"is_wanted": True}
    config = cache.identity.config | {"soft_targets": settings}
    destination = DirectoryDestination(out)
    identity = destination.begin_or_resume(dataclasses.replace(cache.identity, config=config))
    tokenizer_files = copy_tokenizer(cache, destination)
    for record in cache.manifest.shards:
        shard = cache.open_shard(record)
        batches = [shard.read_batch(index) for index in range(shard.num_record_batches)]
        if record.key.kind == "soft_targets":
            batches = [_marked_batch(batch, identity.schema("soft_targets"), choose) for batch in batches]
        write_commit(out, write_shard(out, identity, record.key, record.first_row_id, batches))
        cache.close_shard(shard)
    destination.finish(identity, tokenizer_files)
    return open_cache(out)


def _marked_batch(batch: pa.RecordBatch, schema: pa.Schema, choose: Choose) -> pa.RecordBatch:
    rows = soft_targets.decode(batch)
    is_wanted = choose(rows) & rows.is_in_one_segment
    flat = is_wanted.reshape(-1)
    sizes = (rows.head_size + rows.tail_size).reshape(-1)
    tempered = {t: np.where(is_wanted, mass, 0) for t, mass in rows.tempered_tail_logmass.items()}
    kept = dataclasses.replace(
        rows,
        is_wanted=is_wanted,
        head_size=rows.head_size * is_wanted,
        tail_size=rows.tail_size * is_wanted,
        ids=rows.ids[np.repeat(flat, sizes)],
        logprobs=rows.logprobs[np.repeat(flat, rows.head_size.reshape(-1))],
        tail_logprob=np.where(is_wanted, rows.tail_logprob, 0),
        entropy=np.where(is_wanted, rows.entropy, 0),
        label_logprob=np.where(is_wanted, rows.label_logprob, 0),
        tempered_tail_logmass=tempered,
    )
    return soft_targets.encode(kept, schema, 10)
