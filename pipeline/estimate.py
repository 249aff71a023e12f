"""--plan: estimate the bytes and the time of a run from a short timed probe on this device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.corpus.notices import tokenization_notices
from pipeline.decoding.cache_check import SLOWER_WAY
from pipeline.framing import framing_lines
from pipeline.job import Job
from pipeline.plan import RECORD_BATCH_ROWS, planned_shards
from pipeline.producers.producer import Producer
from storage.records.identity import SPLITS
from storage.shards.shard import ipc_write_options
from storage.tensors.packing import Isolation


@dataclass(frozen=True, kw_only=True)
class KindEstimate:
    """The size of a kind. Rows and shards are exact; bytes and seconds are scaled up from a probe of a few rows."""

    kind: str
    num_rows: int
    num_shards: int
    estimated_bytes: int
    estimated_seconds: float


def estimate(job: Job) -> list[KindEstimate]:
    """Return an estimate for each kind."""
    shards = planned_shards(job.producers, job.config.shard_tokens)
    return [_estimate_kind(kind, producer, sum(shards[kind].values())) for kind, producer in job.producers.items()]


def render_plan(job: Job) -> str:
    """Return the plan as text for the terminal."""
    lines = []
    for split in SPLITS:
        store = job.tokenized.documents[split]
        num_blocks = len(job.tokenized.blocks[split])
        # In a text without flags, only the token at which validation was cut off may have one.
        flags = None if job.tokenized.documents["train"].is_wanted is None else store.is_wanted
        wanted = "" if flags is None else f"; {np.count_nonzero(flags):,} tokens wanted"
        lines.append(
            f"{split:<12}{store.num_tokens:>14,} tokens in {len(store.ends):,} documents, {num_blocks:,} blocks{wanted}"
        )
    if job.tokenized.counts.num_documents_skipped:
        lines.append(f"{'skipped':<12}{job.tokenized.counts.num_documents_skipped:>14,} documents without text")
    if job.teacher.isolation is not Isolation.PACKED:
        lines.append("isolation     this teacher cannot read packed documents apart: it gets one document a row")
    lines += tokenization_notices(job.config, job.tokenized.counts.facts())
    lines += framing_lines(job)
    estimates = estimate(job)
    if job.teacher.reads_whole_texts:
        lines.append(f"drawing       {SLOWER_WAY}")
    for e in estimates:
        lines.append(
            f"{e.kind:<14}{e.num_rows:>12,} rows in {e.num_shards} shards, about {e.estimated_bytes / 1e6:,.1f} MB "
            f"and {_duration(e.estimated_seconds)} on {job.teacher.device}"
        )
    total_seconds = sum(e.estimated_seconds for e in estimates)
    lines.append(
        f"in all        about {sum(e.estimated_bytes for e in estimates) / 1e6:,.1f} MB, {_duration(total_seconds)}"
    )
    for producer in job.producers.values():
        lines += _break_even(producer, total_seconds)
    lines.append("nothing was written")
    return "\n".join(lines)


def _break_even(producer: Producer, total_seconds: float) -> list[str]:
    """Return a line that compares the cache with online distillation; no line when the producer has no online work."""
    probe_rows = _probe_rows(producer)
    work = producer.online_work(probe_rows)
    if work is None:
        return []
    num_rows = sum(producer.num_rows(split) for split in SPLITS)
    online_seconds = _timed(work) * num_rows / probe_rows
    passes = max(1, math.ceil(total_seconds / online_seconds))
    return [
        f"break-even    online distillation would spend {_duration(online_seconds)} of teacher time "
        f"per student and epoch: this cache pays from student {passes} on (at one epoch each)"
    ]


def _estimate_kind(kind: str, producer: Producer, num_shards: int) -> KindEstimate:
    num_rows = sum(producer.num_rows(split) for split in SPLITS)
    probe_rows = _probe_rows(producer)
    if probe_rows == 0:
        return KindEstimate(kind=kind, num_rows=0, num_shards=0, estimated_bytes=0, estimated_seconds=0.0)
    batches: list[pa.RecordBatch] = []

    def probe() -> None:
        batches[:] = producer.record_batches("train", 0, probe_rows, RECORD_BATCH_ROWS)

    seconds = _timed(probe)
    scale = num_rows / probe_rows
    return KindEstimate(
        kind=kind,
        num_rows=num_rows,
        num_shards=num_shards,
        estimated_bytes=round(_compressed_bytes(batches) * scale),
        estimated_seconds=seconds * scale,
    )


def _probe_rows(producer: Producer) -> int:
    return min(producer.most_probe_rows, producer.num_rows("train"))


def _timed(action: Callable[[], None]) -> float:
    """Run `action` twice and return the seconds of the second run. The first run warms up."""
    action()
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _compressed_bytes(batches: list[pa.RecordBatch]) -> int:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batches[0].schema, options=ipc_write_options()) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return int(sink.getvalue().size)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
