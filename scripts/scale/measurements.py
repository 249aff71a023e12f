"""Measure seconds and memory of the real code on made-up records, each measurement in a separate process.

A measurement prepares the state that earlier steps leave and returns the action to measure. The action returns figures
that tests compare with the plan. There are no shards: code that would read one fails at the first, after its planning.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NoReturn, cast

import numpy as np

from pipeline.config import PrecomputeConfig
from pipeline.corpus.blocks import Blocks
from pipeline.corpus.parts.joining import TokenizationCounts
from pipeline.corpus.tokenization import TokenizedCorpus
from pipeline.engines.shard_writing import write_missing_shards
from pipeline.plan import make_producers, planned_shards, shard_ranges
from pipeline.producers.producer import Producer
from pipeline.teacher.model import Teacher
from scripts.scale.made_up import BLOCK_SIZE, TOKENS_PER_SHARD, VOCAB_SIZE, MadeUp, identity_of, tokens_of
from scripts.support.measure import peak_extra_bytes, seconds_of
from storage.disk.hashing import sha256_file
from storage.errors import MissingFileError, TransferError
from storage.reading.cache import Cache, open_cache
from storage.reading.epoch_order import EpochOrder
from storage.reading.inspection import render_summary, summarize
from storage.reading.remote_cache import LocalCopy
from storage.reading.verification import check_records
from storage.records.commits import read_plan
from storage.records.manifest import MANIFEST_NAME
from storage.remote.directory import RemoteDirectory
from storage.sharing.merging import merge
from storage.sharing.transfer import pull, push
from storage.writing.destinations import open_destination
from storage.writing.directory_destination import DirectoryDestination

KIND, SPLIT = "soft_targets", "train"
STREAM_POSITION = 10**9
_LOCAL_COPY_BYTES = 16 << 30
_SEED = 0

Figures = dict[str, int | str]
Action = Callable[[], Figures]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A measurement. `is_start_up` says that a run waits for it before its first work, so that it has a target."""

    what: str
    is_start_up: bool
    prepare: Callable[[MadeUp], Action]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The result of a measurement.

    peak_bytes: peak resident memory beyond the interpreter, its imports and the prepared state.
    """

    what: str
    is_start_up: bool
    seconds: float
    peak_bytes: int
    figures: Figures


def measure_all(made_up: MadeUp) -> Iterator[Measured]:
    """Run the measurements one after the other and yield their results."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as processes:
        for index in range(len(MEASUREMENTS)):
            yield processes.submit(_measure, index, made_up).result()


def _measure(index: int, made_up: MadeUp) -> Measured:
    measurement = MEASUREMENTS[index]
    action = measurement.prepare(made_up)
    seconds: list[float] = []
    figures: Figures = {}
    peak_bytes = peak_extra_bytes(lambda: seconds.append(seconds_of(lambda: figures.update(action()))))
    return Measured(
        what=measurement.what,
        is_start_up=measurement.is_start_up,
        seconds=seconds[0],
        peak_bytes=peak_bytes,
        figures=figures,
    )


def plan(made_up: MadeUp) -> Action:
    """Measure the plan: which rows go into which shard."""

    def action() -> Figures:
        producers = _producers(made_up)
        ranges = list(shard_ranges(producers, TOKENS_PER_SHARD))
        num_shards = planned_shards(producers, TOKENS_PER_SHARD)[KIND][SPLIT]
        return {"shards": num_shards, "rows": sum(shard.end_row - shard.first_row for shard in ranges)}

    return action


def _producers(made_up: MadeUp) -> dict[str, Producer]:
    config = PrecomputeConfig(
        teacher="none",
        data="none",
        out=made_up.scratch,
        kinds=("soft_targets",),
        block_size=BLOCK_SIZE,
        batch_tokens=BLOCK_SIZE,
        shard_tokens=TOKENS_PER_SHARD,
    )
    counts = TokenizationCounts(
        num_documents=1, num_documents_skipped=0, num_prompts_skipped=0, validation_is_end_of_text=False
    )
    documents = tokens_of(made_up)
    tokenized = TokenizedCorpus(
        documents=documents,
        blocks={split: Blocks(store, BLOCK_SIZE) for split, store in documents.items()},
        prompts={},
        beginning_ids=(),
        counts=counts,
    )
    teacher = SimpleNamespace(vocab_size=VOCAB_SIZE)  # planning reads nothing else of the teacher
    return make_producers(cast(Teacher, teacher), tokenized, config)


class _TeacherNeededError(Exception):
    """The point at which the teacher would make its first row."""


def resume(made_up: MadeUp) -> Action:
    """Measure planning and skipping every committed shard, up to the first row that is missing."""

    def record_batches(split: str, start: int, *others: int) -> NoReturn:
        raise _TeacherNeededError(start)

    def action() -> Figures:
        committed_rows: list[int] = []
        ranges = list(shard_ranges(_producers(made_up), TOKENS_PER_SHARD))
        destination = open_destination(made_up.begun)
        identity = destination.begin_or_resume(identity_of(made_up.num_shards))
        teacher = cast(Producer, SimpleNamespace(record_batches=record_batches, tokens_per_row=1))
        try:
            write_missing_shards(
                destination, identity, teacher, ranges, lambda num_rows, is_new: committed_rows.append(num_rows)
            )
        except _TeacherNeededError as needed:
            return {"committed shards": len(committed_rows), "next row": needed.args[0]}
        raise AssertionError("nothing was left to be made")

    return action


def join(made_up: MadeUp) -> Action:
    """Measure joining all commit records into the manifest after the last shard."""
    identity = identity_of(made_up.num_shards)

    def action() -> Figures:
        DirectoryDestination(made_up.committed).finish(identity, [])
        manifest = made_up.committed / MANIFEST_NAME
        return {"manifest bytes": manifest.stat().st_size, "sha256": sha256_file(manifest)[:16]}

    return action


def open_finished(made_up: MadeUp) -> Action:
    """Measure opening a finished cache, which every command does first."""
    return lambda: _size(open_cache(made_up.finished))


def open_from_url(made_up: MadeUp) -> Action:
    """Measure opening a finished cache from a URL, with a local copy that holds no shard yet."""
    url = made_up.finished.as_uri()
    RemoteDirectory(url)  # imports the protocol's implementation
    local_copy = LocalCopy(directory=made_up.scratch / "local", max_bytes=_LOCAL_COPY_BYTES)
    return lambda: _size(open_cache(url, local_copy=local_copy))


def open_begun(made_up: MadeUp) -> Action:
    """Measure what train --allow-incomplete does first when half of the shards are committed."""
    return lambda: _size(open_cache(made_up.begun, allow_incomplete=True))


def inspect(made_up: MadeUp) -> Action:
    """Measure opening a cache and adding up its records."""

    def action() -> Figures:
        summary = summarize(open_cache(made_up.finished))
        render_summary(summary)
        totals = summary["kinds"][KIND][SPLIT]
        return {"tokens": totals["num_tokens"], "bytes": totals["shard_bytes"]}

    return action


def first_window(made_up: MadeUp) -> Action:
    """Measure computing the order of an epoch's shards and of the rows in its first window."""
    cache = open_cache(made_up.finished)

    def action() -> Figures:
        order = epoch_order(cache, 0)
        return {"rows": order.num_rows, "rows in the window": len(order.windows_from(0)[0].row_order)}

    return action


def whole_epoch(made_up: MadeUp) -> Action:
    """Measure computing the order of every row of an epoch."""
    cache = open_cache(made_up.finished)

    def action() -> Figures:
        order = epoch_order(cache, 0)
        position = num_windows = num_batches = 0
        while position < order.num_rows:
            for window in order.windows_from(position):
                position += len(window.row_order)
                num_windows += 1
                num_batches += len(window.batches)
        return {"rows": position, "record batches": num_batches, "windows": num_windows}

    return action


def find_position(made_up: MadeUp) -> Action:
    """Measure finding the row that a stream yields after STREAM_POSITION others, over as many epochs as needed."""
    cache = open_cache(made_up.finished)

    def action() -> Figures:
        epoch, position = divmod(STREAM_POSITION, cache.num_rows(KIND, SPLIT))
        window = epoch_order(cache, epoch).windows_from(position)[0]
        batch, row = window.places(np.array([position]))[0]
        shard, record_batch = window.batches[batch]
        first_row = cache.shards(KIND, SPLIT)[shard].first_row_id + record_batch * cache.identity.record_batch_rows
        return {"epoch": epoch, "position": position, "row_id": first_row + row}

    return action


def epoch_order(cache: Cache, epoch: int) -> EpochOrder:
    """Return the order of an epoch as RowStream computes it."""
    rows = cache.identity.record_batch_rows
    return EpochOrder(cache.shards(KIND, SPLIT), rows, seed=_SEED, epoch=epoch, shuffle=True)


def verify(made_up: MadeUp) -> Action:
    """Measure checking the plan and every commit record against the manifest, which was checked on opening."""
    cache = open_cache(made_up.finished)
    return lambda: {"commit records": len(cache.manifest.shards), "problems": len(check_records(cache))}


def begin_push(made_up: MadeUp) -> Action:
    """Measure a push to an empty URL up to the first shard: checking records and looking up shards."""
    there = made_up.scratch / "pushed"
    RemoteDirectory(there.as_uri())

    def action() -> Figures:
        _until_first_shard(lambda: push(made_up.finished, there.as_uri()))
        return {"shards to send": read_plan(there).num_planned_shards}

    return action


def begin_pull(made_up: MadeUp) -> Action:
    """Measure a pull up to the first shard: fetching and checking the manifest and beginning the copy."""
    here, url = made_up.scratch / "pulled", made_up.finished.as_uri()
    RemoteDirectory(url)

    def action() -> Figures:
        _until_first_shard(lambda: pull(url, here))
        return {"shards to fetch": read_plan(here).num_planned_shards}

    return action


def begin_merge(made_up: MadeUp) -> Action:
    """Measure a merge up to the first shard: opening both, comparing their settings and beginning the merged cache."""
    out = made_up.scratch / "merged"

    def action() -> Figures:
        _until_first_shard(lambda: merge([made_up.finished, made_up.other], out))
        return {"shards to link": read_plan(out).num_planned_shards}

    return action


def _until_first_shard(work: Callable[[], object]) -> None:
    try:
        work()
    except (MissingFileError, TransferError) as error:
        if f"{KIND}/{SPLIT}-" not in str(error):
            raise
        return
    raise AssertionError("no shard was missed")


def _size(cache: Cache) -> Figures:
    return {"shards": len(cache.manifest.shards), "rows": cache.num_rows(KIND, SPLIT)}


MEASUREMENTS = tuple(
    Measurement(what=what, is_start_up=is_start_up, prepare=prepare)
    for what, is_start_up, prepare in (
        ("plan", True, plan),
        ("resume, half of it committed", True, resume),
        ("join commit records into the manifest", False, join),
        ("open", True, open_finished),
        ("open from a URL", True, open_from_url),
        ("open while half of it is committed", True, open_begun),
        ("inspect", True, inspect),
        ("order of an epoch: first window", True, first_window),
        ("order of an epoch: all of it", False, whole_epoch),
        (f"find position {STREAM_POSITION:,} of the stream", True, find_position),
        ("verify records, without shards", False, verify),
        ("push, up to the first shard", False, begin_push),
        ("pull, up to the first shard", False, begin_pull),
        ("merge with as large a cache, up to the first shard", False, begin_merge),
    )
)
