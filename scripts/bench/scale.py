"""Measure how time and memory grow with a cache: caches of 1, 10 and 100 times as many shards of equal size.

Memory of models is measured on long rows beside short ones (scripts/bench/growth/long_rows.py).

- verify: verify_cache, which reads every byte. Time per shard.
- resume: what precompute does on a finished cache, without the teacher: begin_or_resume, every commit record, finish.
  Time per shard.
- open: open_cache, which reads the manifest. Time per shard.
- first batch: open_cache, RowStream and its first batch, which a training run waits for. Total time.
- tokenize: JSON lines in parts, by two processes of one thread each and by one, into one directory. Total time.
- verify, shared: teachonce-cache verify of a larger cache by two processes, and over HTTP, each against one
  process in the directory. Each process has one thread. Bytes per second, the start of processes included.

The peak memory of tokenizing is that of ten times a text against that of the text, each in a new process. Other peak
memory is the memory that a run holds beyond an opened cache, whose records take about 3.5 kB per shard.

All files are in the page cache, because they have just been written.
"""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from scripts.bench.comparison import Comparison
from scripts.bench.config import BenchConfig
from scripts.bench.growth import long_rows
from scripts.support.caches import RECORD_BATCH_ROWS, write_soft_targets_cache
from scripts.support.file_server import serving
from scripts.support.measure import interleaved_seconds, peak_extra_bytes, seconds_of
from scripts.support.teachers import save_byte_tokenizer
from scripts.support.tokenizing import tokenize_together, tokenizing_peak_bytes, write_rows
from storage.reading.cache import open_cache
from storage.reading.row_stream import RowStream
from storage.reading.verification import open_subject, verify_cache
from storage.records.commits import read_plan
from storage.writing.directory_destination import DirectoryDestination

_TIMES = (1, 10, 100)
# Largest allowed ratios: of seconds per shard and of bytes, and of total seconds.
_FLAT, _CONSTANT = 1.2, 1.5
# Largest ratio of times for 1.8 times the rate.
_TWO_OVER_ONE = 1 / 1.8
# Read small caches several times, so that the measured time is longer than the clock's noise.
_LEAST_SHARDS_TIMED = 40
_NUM_DISTINCT_BATCHES = 8
# Smallest allowed ratio of the throughput of two processes to that of one.
_SHARED = 1.7
_BATCH_ROWS = 8

Action = Callable[[Path], object]
"""An action on the cache in a directory."""

Caches = dict[int, Path]
"""Directories of caches. The key is the number of shards as a multiple of the smallest cache's."""


def run(config: BenchConfig) -> Iterator[Comparison]:
    """Compare times per shard where all shards are read, total time where few are read, and memory."""
    num_shards, block_size = (4, 1024) if config.size == "full" else (1, 16)
    text_bytes, part_bytes = (16_000_000, 2_000_000) if config.size == "full" else (40_000, 5_000)
    with tempfile.TemporaryDirectory() as directory:
        yield from compare_tokenizing(Path(directory), text_bytes, part_bytes, config.rounds)
    with tempfile.TemporaryDirectory() as directory:
        yield from compare(make_caches(Path(directory), num_shards, block_size), num_shards, config.rounds)
        num_batches = 1920 if config.size == "full" else 2
        yield from compare_verifiers(Path(directory), num_batches, block_size, config.rounds)
    yield from long_rows.run(config)


def compare(caches: Caches, num_shards: int, rounds: int) -> Iterator[Comparison]:
    """Compare the largest of `caches` with the smallest, which has `num_shards` shards.

    Memory is compared with the second smallest.
    """
    of_all_shards: dict[str, Action] = {"verify": verify, "resume": resume, "open": open_cache}
    for what, action in of_all_shards.items():
        yield _per_shard(what, action, caches, num_shards, rounds)
    yield _first_batch(caches, rounds)
    for what, action in {"verify": verify, "first batch": first_batch}.items():
        yield _memory(what, action, caches, rounds)


def compare_verifiers(directory: Path, num_batches: int, block_size: int, rounds: int) -> Iterator[Comparison]:
    """Compare the throughput of verify by two processes, and from a URL, with that of one process in a directory.

    1,920 record batches of 1,024 targets a block are 1.5 GB, which takes much longer than two processes take to start.
    """
    path = directory / "to-verify"
    write_soft_targets_cache(
        path,
        num_batches * RECORD_BATCH_ROWS,
        block_size,
        vocab_size=50_257,
        num_shards=min(num_batches, 32),
        num_distinct_batches=_NUM_DISTINCT_BATCHES,
    )
    num_bytes = open_subject(path).num_bytes
    with serving(path) as url:
        verifiers: dict[str, Callable[[], object]] = {
            "one job": lambda: _run_verify(path, 1),
            "two jobs": lambda: _run_verify(path, 2),
            "from a URL": lambda: _run_verify(url, 1),
        }
        seconds = interleaved_seconds(verifiers, rounds, warm_up=0)
    speeds = {name: [num_bytes / 1e6 / s for s in values] for name, values in seconds.items()}
    for name, target in (("two jobs", _SHARED), ("from a URL", None)):
        what = "verify, shared: throughput"
        yield Comparison.between(speeds, name, "one job", what=what, unit="MB/s", target=target, more_is_better=True)


def compare_tokenizing(directory: Path, text_bytes: int, part_bytes: int, rounds: int) -> Iterator[Comparison]:
    """Compare two processes with one, and the memory of a process at a quarter of the text and at ten times that."""
    save_byte_tokenizer(directory / "tokenizer")
    numbers = itertools.count()

    def arguments(text: Path) -> tuple[Path, Path, Path, int]:
        return text, directory / "tokenizer", directory / f"work-{next(numbers)}", part_bytes

    text = write_rows(directory / "text.jsonl", text_bytes)
    seconds = interleaved_seconds(
        {str(num): lambda num=num: tokenize_together(num, *arguments(text)) for num in (1, 2)},  # type: ignore[misc]
        rounds,
    )
    yield Comparison(
        what="tokenize, two processes: time",
        ours="two of one thread",
        reference="one of one thread",
        our_values=seconds["2"],
        reference_values=seconds["1"],
        unit="s",
        target=_TWO_OVER_ONE,
    )

    texts = {times: write_rows(directory / f"{times}.jsonl", times * text_bytes // 4) for times in _TIMES[:2]}
    megabytes = {times: [tokenizing_peak_bytes(*arguments(texts[times])) / 1e6] for times in texts}
    yield _grown("tokenize: peak memory", megabytes, "MB", _FLAT)


def make_caches(directory: Path, num_shards: int, block_size: int) -> Caches:
    """Write caches whose shards hold one record batch each."""
    caches = {times: directory / f"{times}x" for times in _TIMES}
    for times, path in caches.items():
        write_soft_targets_cache(
            path,
            times * num_shards * RECORD_BATCH_ROWS,
            block_size,
            vocab_size=50_257,
            num_shards=times * num_shards,
            num_distinct_batches=_NUM_DISTINCT_BATCHES,
        )
    return caches


def verify(path: Path) -> None:
    """Verify the cache. It must have no problems."""
    assert not verify_cache(path).problems


def _run_verify(where: str | Path, jobs: int) -> None:
    """Run the command, as its processes start with what they need alone; those of a benchmark would load PyTorch too.

    Arrow takes its number of threads from OMP_NUM_THREADS.
    """
    arguments = ["verify", str(where), "--jobs", str(jobs), "--quiet"]
    command = [sys.executable, "-c", "from storage.cli import main; main()", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})


def resume(path: Path) -> None:
    """Find every shard committed, and write the manifest again."""
    destination = DirectoryDestination(path)
    identity = destination.begin_or_resume(read_plan(path))
    assert all(destination.read_commit(key) is not None for key in identity.planned_keys())
    destination.finish(identity, [])


def first_batch(path: Path) -> Iterator[object]:
    """Open a cache and read its first batch. Return the stream, which reads ahead until it is released."""
    batches = RowStream(open_cache(path), "soft_targets", "train", batch_rows=_BATCH_ROWS, seed=0).batches()
    next(batches)
    return batches


def _per_shard(what: str, action: Action, caches: Caches, num_shards: int, rounds: int) -> Comparison:
    def repeat(times: int) -> None:
        for _ in range(_repetitions(times, num_shards)):
            action(caches[times])

    seconds = interleaved_seconds({str(times): functools.partial(repeat, times) for times in caches}, rounds)
    per_shard = {
        times: [1e3 * s / (times * num_shards * _repetitions(times, num_shards)) for s in seconds[str(times)]]
        for times in caches
    }
    return _grown(f"{what}: time per shard", per_shard, "ms", _FLAT)


def _repetitions(times: int, num_shards: int) -> int:
    return -(-_LEAST_SHARDS_TIMED // (times * num_shards))


def _first_batch(caches: Caches, rounds: int) -> Comparison:
    milliseconds: dict[int, list[float]] = {times: [] for times in caches}
    for turn in range(rounds + 1):
        for times in sorted(caches, reverse=turn % 2 == 1):
            streams: list[Iterator[object]] = []
            seconds = seconds_of(lambda path=caches[times], streams=streams: streams.append(first_batch(path)))  # type: ignore[misc]
            if turn > 0:  # the first turn warms up
                milliseconds[times].append(1e3 * seconds)
    return _grown("first batch: time", milliseconds, "ms", _CONSTANT)


def _memory(what: str, action: Action, caches: Caches, rounds: int) -> Comparison:
    """Compare the two larger caches. In the smallest, memory that libraries allocate once would dominate."""
    megabytes = {times: _peaks_beyond_records(action, caches[times], rounds) for times in _TIMES[1:]}
    return _grown(f"{what}: peak memory beyond records", megabytes, "MB", _FLAT)


def _peaks_beyond_records(action: Action, path: Path, rounds: int) -> list[float]:
    """Return the peak megabytes of each round, minus the peak of opening the cache."""
    peaks, records = (
        [peak_extra_bytes(functools.partial(act, path)) for _ in range(rounds)] for act in (action, open_cache)
    )
    return [max(peak - held, 1) / 1e6 for peak, held in zip(peaks, records, strict=True)]


def _grown(what: str, values: dict[int, list[float]], unit: str, target: float) -> Comparison:
    """Return the comparison of the largest cache with the smallest one in `values`."""
    smallest, largest = min(values), max(values)
    return Comparison(
        what=what,
        ours=f"{largest}×",
        reference=f"{smallest}×",
        our_values=values[largest],
        reference_values=values[smallest],
        unit=unit,
        target=target,
    )
