"""Caches of random soft targets, with sizes like those of a real teacher, written by storage itself."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.reading.cache import Cache, open_cache
from storage.records.commits import write_commit, write_plan
from storage.records.identity import CacheIdentity, ShardKey
from storage.rows import columns, soft_targets
from storage.rows.segments import valid_targets
from storage.rows.soft_targets import SoftTargetRows
from storage.shards.shard import write_shard
from storage.writing.directory_destination import DirectoryDestination

RECORD_BATCH_ROWS = 16
_TAIL_WEIGHT = 1 / 32
_MANTISSA_BITS = 6
# With a sampled tail: the most ids in a head, and the most of the remaining mass that the head may receive. Each id of
# the head first gets tail_weight.
_LARGEST_HEAD, _LARGEST_EXTRA_SHARE = 9, 0.95
# Range of the head's mass without a sampled tail. With one, the tail_weight of all ids counts as at most _LEAST_MASS.
_LEAST_MASS, _MOST_MASS = 0.4, 0.95


def write_soft_targets_cache(
    directory: Path,
    num_blocks: int,
    block_size: int,
    vocab_size: int,
    *,
    top_k: int = 1,
    tail_weight: float | None = _TAIL_WEIGHT,
    num_shards: int = 1,
    num_distinct_batches: int | None = None,
    seed: int = 0,
) -> Cache:
    """Write and return a finished cache of `num_blocks` training blocks in at most `num_shards` shards.

    The same arguments give the same cache. Every second block holds pieces of two documents. At tail_weight 1/32 a
    target has 1 to 9 ids in the head and up to 31 draws, 18 entries on average. With tail_weight None it has `top_k`
    ids and the tail's mass. After `num_distinct_batches` record batches the rows repeat under new row ids, which saves
    most of the time. None repeats no rows.
    """
    rows_per_shard = -(-num_blocks // (num_shards * RECORD_BATCH_ROWS)) * RECORD_BATCH_ROWS
    starts = range(0, num_blocks, rows_per_shard)
    identity = made_up_identity(
        num_blocks, block_size, vocab_size, top_k=top_k, tail_weight=tail_weight, num_shards=len(starts)
    )
    write_plan(directory, identity)
    make_rows = functools.lru_cache(num_distinct_batches or 0)(functools.partial(made_up_rows, identity, seed=seed))
    for index, start in enumerate(starts):
        key = ShardKey(kind="soft_targets", split="train", index=index, num_shards=len(starts))
        rows = range(start, min(start + rows_per_shard, num_blocks))
        batches = _record_batches(identity, rows, make_rows, num_distinct_batches)
        write_commit(directory, write_shard(directory, identity, key, start, batches))
    DirectoryDestination(directory).finish(identity, [])
    return open_cache(directory)


def _record_batches(
    identity: CacheIdentity,
    row_ids: range,
    make_rows: Callable[[int, int], SoftTargetRows],
    num_distinct_batches: int | None,
) -> Iterator[pa.RecordBatch]:
    for start in row_ids[::RECORD_BATCH_ROWS]:
        source = start % (num_distinct_batches * RECORD_BATCH_ROWS) if num_distinct_batches else start
        rows = make_rows(source, min(RECORD_BATCH_ROWS, row_ids.stop - start))
        rows = dataclasses.replace(rows, row_id=rows.row_id + (start - source))
        yield soft_targets.encode(
            rows, identity.schema("soft_targets"), identity.mantissa_bits, identity.scalar_mantissa_bits
        )


def made_up_rows(identity: CacheIdentity, first_row: int, num_rows: int, seed: int = 0) -> SoftTargetRows:
    """Return `num_rows` valid rows that start at `first_row`, for the settings of `identity`.

    The result is a pure function of the arguments.
    """
    rng = np.random.default_rng([seed, first_row])
    settings = identity.config["soft_targets"]
    block_size, vocab_size = identity.block_size, identity.vocab_size
    shape = num_rows, block_size
    segments = [_segment_lengths(block_size, row, rng) for row in range(first_row, first_row + num_rows)]
    is_valid = np.stack([valid_targets(lengths) for lengths in segments])
    head_mass, head_size, tail_size = _sizes(is_valid, settings["top_k"], settings["tail_weight"], rng)
    token = columns.token_type(vocab_size).to_pandas_dtype()
    return SoftTargetRows(
        row_id=np.arange(first_row, first_row + num_rows),
        input_ids=(vocab_size * rng.random((num_rows, block_size + 1)) ** 4).astype(token),
        segment_lengths=segments,
        head_size=head_size,
        tail_size=tail_size,
        ids=_distinct_ids(head_size.reshape(-1), tail_size.reshape(-1), vocab_size, rng).astype(token),
        logprobs=_head_logprobs(head_mass.reshape(-1), head_size.reshape(-1), settings["tail_weight"] or 0.0, rng),
        tail_logprob=np.where(is_valid, np.log1p(-head_mass), 0.0),
        entropy=np.where(is_valid, rng.uniform(0, np.log(vocab_size), shape), 0.0),
        label_logprob=np.where(is_valid, -rng.exponential(size=shape), 0.0),
        tempered_tail_logmass={},
    )


def _segment_lengths(block_size: int, row: int, rng: np.random.Generator) -> NDArray[np.int64]:
    if row % 2 == 0 or block_size < 2:
        return np.array([block_size + 1])
    cut = int(rng.integers(1, block_size + 1))
    return np.array([cut, block_size + 1 - cut])


def _sizes(
    is_valid: NDArray[np.bool_], top_k: int, tail_weight: float | None, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the head's mass, the head's size and the number of tail draws, each of the shape of `is_valid`."""
    if tail_weight is None:
        mass = rng.uniform(_LEAST_MASS, _MOST_MASS, is_valid.shape)
        return mass, np.where(is_valid, top_k, 0), np.zeros(is_valid.shape, dtype=np.int64)
    largest = max(top_k, min(_LARGEST_HEAD, int(1 / tail_weight) - 1))
    size = rng.integers(top_k, largest + 1, is_valid.shape)
    at_least = np.minimum(size * tail_weight, _LEAST_MASS)
    mass = at_least + (1 - at_least) * _LARGEST_EXTRA_SHARE * rng.random(is_valid.shape)
    # The number of systematic draws is the floor or the ceiling of its expectation.
    drawn = np.floor((1 - mass) / tail_weight + rng.random(is_valid.shape)).astype(np.int64)
    return mass, np.where(is_valid, size, 0), np.where(is_valid, drawn, 0)


def _head_logprobs(
    mass_P: NDArray[np.float64], size_P: NDArray[np.int64], at_least: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the logprobs of all heads [H]. Each id gets probability `at_least` and a random share of the rest."""
    position_H = np.repeat(np.arange(len(size_P)), size_P)
    share_H = rng.exponential(size=len(position_H)) ** 2 + 1e-3
    total_P = np.bincount(position_H, weights=share_H, minlength=len(size_P))
    floor_P = np.minimum(at_least, 0.9 * mass_P / np.maximum(size_P, 1))
    rest_P = mass_P - floor_P * size_P
    logprobs: NDArray[np.float64] = np.log(floor_P[position_H] + (rest_P / total_P.clip(1e-9))[position_H] * share_H)
    return logprobs


def _distinct_ids(
    head_size_P: NDArray[np.int64], tail_size_P: NDArray[np.int64], vocab_size: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return the ids [E] of all positions: head then tail, each ascending. Small ids are as frequent as in text.

    The vocabulary is cut into strata that widen towards its end. The entries of a position lie in different strata.
    """
    size_P = head_size_P + tail_size_P
    num_strata = int(size_P.max())
    assert num_strata <= vocab_size, (num_strata, vocab_size)
    rank = np.arange(num_strata)
    edges = np.maximum(np.arange(num_strata + 1), vocab_size * (np.arange(num_strata + 1) / num_strata) ** 4)
    low, width = edges[:-1].astype(np.int64), np.diff(edges.astype(np.int64))
    ids_PS = low + (rng.random((len(size_P), num_strata)) * width).astype(np.int64)
    order_PS = np.argsort(rng.random(ids_PS.shape), axis=1)  # assigns strata to head, tail or neither
    owner_PS = np.where(rank < head_size_P[:, None], 0, np.where(rank < size_P[:, None], 1, 2))
    key_PS = owner_PS * vocab_size + np.take_along_axis(ids_PS, order_PS, axis=1)
    key_PS.sort(axis=1)
    ids_E: NDArray[np.int64] = key_PS[rank < size_P[:, None]] % vocab_size
    return ids_E


def made_up_identity(
    num_blocks: int,
    block_size: int,
    vocab_size: int,
    *,
    top_k: int = 1,
    tail_weight: float | None = _TAIL_WEIGHT,
    mantissa_bits: int = _MANTISSA_BITS,
    num_shards: int = 1,
) -> CacheIdentity:
    """Return the identity of a cache that `write_soft_targets_cache` writes."""
    return CacheIdentity(
        vocab_size=vocab_size,
        block_size=block_size,
        record_batch_rows=RECORD_BATCH_ROWS,
        temperatures=(1.0,),
        teacher={
            "id": "none",
            "revision": None,
            "architecture": "none",
            "num_parameters": 0,
            "context_length": block_size,
            "dtype": "float32",
            "weights_bytes": 0,
            "weights_sha256": "0" * 64,
        },
        tokenizer={"size": vocab_size, "sha256": "0" * 64, "eos_token_id": None},
        data={
            "source": "random rows",
            "fingerprint": "0" * 64,
            "licence": None,
            "packing": "none",
            "num_documents": num_blocks,
            "num_tokens": {"train": num_blocks * (block_size + 1), "validation": 0},
        },
        config={
            "soft_targets": {
                "top_k": top_k,
                "tail_weight": tail_weight,
                "mantissa_bits": mantissa_bits,
                "scalar_mantissa_bits": mantissa_bits,
            }
        },
        software={},
        planned_shards={"soft_targets": {"train": num_shards}},
    )
