"""Measure writing soft targets on one core, from arrays to a published shard.

Ours encodes, checks, compresses, hashes, fsyncs and renames. Two references store ids and logprobs of such targets:

- DistillKit's encoder (arcee-ai/DistillKit, its packing of ids and polynomial fits of logprobs). Its figure, 19,000
  tokens/s, is quoted and not measured here. On two CPU cores with random logits it reached 11 to 19 thousand in
  November 2026. It only encodes; storing the result takes more time.
- Parquet with zstd as pyarrow writes it, measured in turn with ours. It holds ids and unrounded float16 logprobs as
  lists per target and nothing else of a row. It does not check, hash or fsync.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from scripts.bench.comparison import Comparison
from scripts.bench.config import BenchConfig
from scripts.support.caches import RECORD_BATCH_ROWS, made_up_identity, made_up_rows
from scripts.support.measure import interleaved_seconds
from storage.records.identity import CacheIdentity, ShardKey
from storage.rows import columns, soft_targets
from storage.rows.soft_targets import SoftTargetRows
from storage.shards.shard import write_shard

_QUOTED_DISTILLKIT_TOKENS_PER_SECOND = 19_000.0
_TARGET = 20.0
_KEY = ShardKey(kind="soft_targets", split="train", index=0, num_shards=1)
_KINDS: dict[str, tuple[int, float | None]] = {"top 64, no draws": (64, None), "default (τ = 1/32)": (1, 1 / 32)}


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Rows as a producer yields them, one entry per record batch, and the identity of their cache."""

    identity: CacheIdentity
    rows: list[SoftTargetRows]

    @property
    def num_tokens(self) -> int:
        """Number of targets, written or masked."""
        return sum(rows.head_size.size for rows in self.rows)


def run(config: BenchConfig) -> Iterator[Comparison]:
    """Compare each kind of targets with both references."""
    num_batches, block_size, vocab_size = (8, 1024, 50_257) if config.size == "full" else (2, 32, 300)
    with tempfile.TemporaryDirectory() as directory, _one_arrow_thread():
        for name, (top_k, tail_weight) in _KINDS.items():
            num_blocks = num_batches * RECORD_BATCH_ROWS
            identity = made_up_identity(num_blocks, block_size, vocab_size, top_k=top_k, tail_weight=tail_weight)
            targets = Targets(identity=identity, rows=[_produced(identity, index) for index in range(num_batches)])
            yield from _compare(name, targets, Path(directory), config.rounds)


def write_ours(targets: Targets, directory: Path) -> Path:
    """Write the targets as a shard of a cache and return its file."""
    path = directory / _KEY.path
    path.unlink(missing_ok=True)
    schema, mantissa_bits = targets.identity.schema("soft_targets"), targets.identity.mantissa_bits
    batches = (soft_targets.encode(rows, schema, mantissa_bits, mantissa_bits) for rows in targets.rows)
    write_shard(directory, targets.identity, _KEY, 0, batches)
    return path


def write_parquet(targets: Targets, directory: Path) -> Path:
    """Write ids and logprobs as Parquet, one row per target, and return the file."""
    path = directory / "targets.parquet"
    token = columns.token_type(targets.identity.vocab_size)
    batches = []
    for rows in targets.rows:
        entries = columns.offsets_of((rows.head_size + rows.tail_size).reshape(-1)).astype(np.int32)
        heads = columns.offsets_of(rows.head_size.reshape(-1)).astype(np.int32)
        ids = pa.ListArray.from_arrays(entries, pa.array(rows.ids.astype(token.to_pandas_dtype())))
        logprobs = pa.ListArray.from_arrays(heads, pa.array(rows.logprobs.astype(np.float16)))
        batches.append(pa.RecordBatch.from_arrays([ids, logprobs], names=["ids", "logprobs"]))
    pyarrow.parquet.write_table(pa.Table.from_batches(batches), path, compression="zstd")
    return path


def _compare(name: str, targets: Targets, directory: Path, rounds: int) -> Iterator[Comparison]:
    writers = {"teachonce": write_ours, "pyarrow Parquet, zstd": write_parquet}
    seconds = interleaved_seconds(
        {writer: lambda write=write: write(targets, directory) for writer, write in writers.items()},  # type: ignore[misc]
        rounds,
    )
    rates = {writer: [targets.num_tokens / s for s in measured] for writer, measured in seconds.items()}
    (ours, our_rates), (parquet, parquet_rates) = rates.items()
    yield Comparison(
        what=f"{name}: write, one core",
        ours=ours,
        reference="DistillKit's encoder (quoted figure, not measured here)",
        our_values=our_rates,
        reference_values=[_QUOTED_DISTILLKIT_TOKENS_PER_SECOND] * rounds,
        unit="tokens/s",
        target=_TARGET,
        more_is_better=True,
    )
    yield Comparison(
        what=f"{name}: write, one core",
        ours=ours,
        reference=parquet,
        our_values=our_rates,
        reference_values=parquet_rates,
        unit="tokens/s",
        more_is_better=True,
    )
    our_bytes, parquet_bytes = (write(targets, directory).stat().st_size for write in writers.values())
    yield Comparison(
        what=f"{name}: file",
        ours=ours,
        reference=f"{parquet} (ids and logprobs alone)",
        our_values=[our_bytes / targets.num_tokens],
        reference_values=[parquet_bytes / targets.num_tokens],
        unit="bytes/token",
    )


def _produced(identity: CacheIdentity, batch: int) -> SoftTargetRows:
    """Return random rows of one record batch, in the dtypes that a pass of the teacher returns."""
    rows = made_up_rows(identity, batch * RECORD_BATCH_ROWS, RECORD_BATCH_ROWS)
    values = {name: getattr(rows, name).astype(np.float32) for name in ("logprobs", "tail_logprob", "label_logprob")}
    return dataclasses.replace(
        rows,
        ids=rows.ids.astype(np.int64),
        entropy=None if rows.entropy is None else rows.entropy.astype(np.float32),
        **values,
    )


@contextlib.contextmanager
def _one_arrow_thread() -> Iterator[None]:
    cpu_threads, io_threads = pa.cpu_count(), pa.io_thread_count()
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    try:
        yield
    finally:
        pa.set_cpu_count(cpu_threads)
        pa.set_io_thread_count(io_threads)
