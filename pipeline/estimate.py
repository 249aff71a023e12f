"""--plan: estimate the bytes and the time of a run from a short timed probe on this device."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.corpus.notices import tokenization_notices
from pipeline.decoding.cache_check import SLOWER_WAY
from pipeline.framing import framing_lines
from pipeline.job import Job
from pipeline.plan import RECORD_BATCH_ROWS, rows_per_shard
from pipeline.producers.producer import Producer
from pipeline.sources.sample.ratio import Estimate, mean_of, total_of
from storage.records.identity import SPLITS
from storage.shards.shard import ipc_write_options
from storage.tensors.packing import Isolation

# Slices of a probe whose sizes say how much the size of a row varies.
_NUM_SLICES = 4


@dataclass(frozen=True, kw_only=True)
class Whole:
    """What a sample says of the whole text. growth: the tokens of the whole for one of the sample.

    num_documents: those without text are not among them. remarks: lines on what was read.
    """

    num_tokens: Estimate
    num_documents: Estimate
    validation_share: float
    growth: Estimate
    remarks: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class KindEstimate:
    """The size of a kind. Of a text that was read whole, rows and shards are exact."""

    kind: str
    num_rows: Estimate
    num_shards: int
    num_bytes: Estimate
    seconds: Estimate


def render_plan(job: Job, whole: Whole | None = None) -> str:
    """Return the plan as text for the terminal. whole: of the text of which the job's is a sample."""
    facts = job.tokenized.counts.facts()
    lines = _text_lines(job) if whole is None else _sampled_text_lines(job, whole)
    if job.teacher.isolation is not Isolation.PACKED:
        lines.append("isolation     this teacher cannot read packed documents apart: it gets one document a row")
    lines += [f"{'' if whole is None else 'in the sample, '}{line}" for line in tokenization_notices(job.config, facts)]
    lines += framing_lines(job)
    estimates = [_estimate_kind(kind, producer, job, whole) for kind, producer in job.producers.items()]
    if job.teacher.reads_whole_texts:
        lines.append(f"drawing       {SLOWER_WAY}")
    lines += [_kind_line(e, str(job.teacher.device), is_sampled=whole is not None) for e in estimates]
    total_seconds = total_of([e.seconds for e in estimates])
    total_bytes = total_of([e.num_bytes for e in estimates])
    lines.append(f"in all        about {_megabytes(total_bytes)}, {_seconds(total_seconds)}")
    for producer, e in zip(job.producers.values(), estimates, strict=True):
        lines += _break_even(producer, e.num_rows.value, total_seconds.value)
    return "\n".join([*lines, *([] if whole is None else whole.remarks), "nothing was written"])


def _text_lines(job: Job) -> list[str]:
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
    return lines


def _sampled_text_lines(job: Job, whole: Whole) -> list[str]:
    stores, counts = job.tokenized.documents.values(), job.tokenized.counts
    flags = [store.is_wanted for store in stores if store.is_wanted is not None]
    is_wanted = job.config.marks_wanted
    num_wanted = whole.growth.value * sum(map(np.count_nonzero, flags))
    num_blocks = whole.growth.value * sum(map(len, job.tokenized.blocks.values()))
    lines = [
        f"{'text':<14}about {_count(whole.num_tokens)} tokens in about {_count(whole.num_documents)} documents, about "
        f"{_rounded(num_blocks)} blocks{f'; about {_rounded(num_wanted)} tokens wanted' if is_wanted else ''}",
        f"{'validation':<14}about {100 * whole.validation_share:.3g} % of the tokens",
    ]
    if counts.num_documents_skipped:
        share = counts.num_documents_skipped / counts.num_documents
        lines.append(f"{'skipped':<14}about {100 * share:.2g} % of the documents, which have no text")
    return lines


def _kind_line(e: KindEstimate, device: str, *, is_sampled: bool) -> str:
    about = "" if e.num_rows.is_exact else "about "
    return (
        f"{e.kind:<14}{about + _count(e.num_rows):>12} rows in {about}{e.num_shards:,} shards, about "
        f"{_megabytes(e.num_bytes)} and {_seconds(e.seconds)} on {device}"
    )


def _break_even(producer: Producer, num_rows: float, total_seconds: float) -> list[str]:
    """Return a line that compares the cache with online distillation; no line when the producer has no online work."""
    probe_rows = _probe_rows(producer)
    warm_up, work = producer.online_work(_few_of(probe_rows)), producer.online_work(probe_rows)
    if warm_up is None or work is None:
        return []
    online_seconds = _timed(warm_up, work) * num_rows / probe_rows
    passes = max(1, math.ceil(total_seconds / online_seconds))
    return [
        f"break-even    online distillation would spend {_duration(online_seconds)} of teacher time "
        f"per student and epoch: this cache pays from student {passes} on (at one epoch each)"
    ]


def _estimate_kind(kind: str, producer: Producer, job: Job, whole: Whole | None) -> KindEstimate:
    num_rows = _num_rows(producer, whole)
    probe_rows = _probe_rows(producer)
    if probe_rows == 0:
        nothing = Estimate(value=0)
        return KindEstimate(kind=kind, num_rows=nothing, num_shards=0, num_bytes=nothing, seconds=nothing)
    batches: list[pa.RecordBatch] = []

    def probe(stop: int) -> None:
        batches[:] = producer.record_batches("train", 0, stop, RECORD_BATCH_ROWS)

    seconds = _timed(lambda: probe(_few_of(probe_rows)), lambda: probe(probe_rows))
    row_bytes = Estimate(value=_compressed_bytes(batches) / probe_rows) if whole is None else _row_bytes(batches)
    return KindEstimate(
        kind=kind,
        num_rows=num_rows,
        num_shards=_num_shards(producer, num_rows.value, job.config.shard_tokens, whole),
        num_bytes=num_rows.times(row_bytes),
        seconds=num_rows.times(Estimate(value=seconds / probe_rows)),
    )


def _num_rows(producer: Producer, whole: Whole | None) -> Estimate:
    if whole is None:
        return Estimate(value=producer.num_rows_of(1))
    growth = whole.growth
    value, low, high = map(
        producer.num_rows_of, (growth.value, growth.value - growth.below, growth.value + growth.above)
    )
    return Estimate(value=value, below=value - low, above=high - value)


def _num_shards(producer: Producer, num_rows: float, shard_tokens: int, whole: Whole | None) -> int:
    """Return the number of shards of both splits together."""
    rows = [producer.num_rows(split) for split in SPLITS]
    if whole is not None:
        rows = [round(num_rows * share) for share in (1 - whole.validation_share, whole.validation_share)]
    return sum(-(-n // rows_per_shard(producer, shard_tokens)) for n in rows)


def _probe_rows(producer: Producer) -> int:
    return min(producer.most_probe_rows, producer.num_rows("train"))


def _few_of(probe_rows: int) -> int:
    """Return the rows of the run that warms up."""
    return -(-probe_rows // 4)


def _timed(warm_up: Callable[[], None], action: Callable[[], None]) -> float:
    """Run both and return the seconds of the second."""
    warm_up()
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _row_bytes(batches: Sequence[pa.RecordBatch]) -> Estimate:
    """Return the mean bytes of a row in a shard, with an interval from slices. The schema is not theirs."""
    num_rows, schema_bytes = sum(batch.num_rows for batch in batches), _compressed_bytes([batches[0].slice(0, 0)])
    mean = (_compressed_bytes(batches) - schema_bytes) / num_rows
    table = pa.Table.from_batches(batches).combine_chunks()
    edges = [i * num_rows // _NUM_SLICES for i in range(_NUM_SLICES + 1)]
    slices = [table.slice(a, b - a).to_batches()[0] for a, b in itertools.pairwise(edges) if a < b]
    sizes = mean_of([(_compressed_bytes([part]) - schema_bytes) / part.num_rows for part in slices])
    return Estimate(value=mean, below=sizes.below * mean / sizes.value, above=sizes.above * mean / sizes.value)


def _compressed_bytes(batches: Sequence[pa.RecordBatch]) -> int:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batches[0].schema, options=ipc_write_options()) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return int(sink.getvalue().size)


def _count(estimate: Estimate) -> str:
    return f"{estimate.value:,.0f}" if estimate.is_exact else _with_interval(estimate, _rounded)


def _megabytes(estimate: Estimate) -> str:
    return _with_interval(estimate, lambda num_bytes: f"{num_bytes / 1e6:,.1f} MB")


def _seconds(estimate: Estimate) -> str:
    return _with_interval(estimate, _duration)


def _with_interval(estimate: Estimate, render: Callable[[float], str]) -> str:
    if estimate.is_exact:
        return render(estimate.value)
    low, high = render(max(estimate.value - estimate.below, 0)), render(estimate.value + estimate.above)
    return render(estimate.value) if low == high else f"{render(estimate.value)} ({low} to {high})"


def _rounded(number: float) -> str:
    """Return a number of four digits, and zeros."""
    return f"{float(f'{number:.4g}'):,.0f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
