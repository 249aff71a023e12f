"""Measure our reader against other storage formats, from files to shuffled blocks as tensors ready for the loss.

All systems store the same rows, shuffle in their usual way and return the same tensors. Each system reads in a separate
process that stays alive, and the systems take turns. The other libraries are no dependencies of the project, so they
run in another environment. Ours verifies hashes, and checks the rows that this machine has not checked before. Of the
others only mosaicml-streaming can verify hashes, but does not by default. It keeps an unpacked copy of the shards that
it has read, so its later epochs read no compressed files.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from scripts.bench.comparison import Comparison
from scripts.bench.config import BenchConfig
from scripts.bench.stream_systems import OURS, PEERS, StreamSystem
from scripts.support.caches import write_soft_targets_cache
from scripts.support.child import Child
from scripts.support.environment import default_directory, peers_python

_VOCAB_SIZE = 50_257
# Blocks, targets per block, shards. _EPOCH takes one to a few seconds; _DEFAULT_SHARDS is a group of shards of the
# default size.
_EPOCH = {"full": (2048, 1024, 4), "tiny": (64, 16, 2)}
_DEFAULT_SHARDS = {"full": (8192, 1024, 4), "tiny": (64, 16, 4)}
_LEAST_SPEED_RATIO, _MOST_SECONDS, _MOST_MEMORY_RATIO = 1.0, 0.3, 1.05


class StreamReader(Child):
    """A process that reads with one system until `close` is called. It runs scripts/bench/stream_worker.py."""

    def __init__(self, system: StreamSystem, python: str, directory: Path, work_dir: Path) -> None:
        self.system, self.directory = system, directory
        arguments = system.name, str(directory), str(work_dir / "scratch")
        environment = {"XDG_CACHE_HOME": str(work_dir / "user-cache")}
        super().__init__(python, "scripts.bench.stream_worker", arguments, work_dir, environment)


@dataclass(kw_only=True)
class _Figures:
    """Tokens per second in epochs and seconds to the first batch of one system, round by round.

    known: of first epochs over rows that were checked before on this machine; only ours checks rows.
    """

    reader: StreamReader
    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    known: list[float] = field(default_factory=list)
    first_batch_s: list[float] = field(default_factory=list)


def run(config: BenchConfig) -> Iterator[Comparison]:
    """Compare tokens per second, seconds to the first batch, peak memory over epochs, and bytes on disk."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        yield from compare(open_readers(config, Path(name), stack), config, Path(name))


def compare(readers: list[StreamReader], config: BenchConfig, work_dir: Path) -> Iterator[Comparison]:
    """Compare the first reader, which is ours, with the others. The readers take turns."""
    figures = [_Figures(reader=reader) for reader in readers]
    for turn in range(config.rounds):
        for one in figures[:: -1 if turn % 2 else 1]:
            _measure(one)
    ours, *peers = figures
    yield from _speeds(ours, peers)
    yield _first_batch_of_default_shards(config, work_dir)
    yield from _first_batches(ours, peers)
    yield _memory(ours.reader, config.rounds)
    for peer in {reader.directory: reader for reader in readers[1:]}.values():
        yield _bytes(ours.reader, peer)


def open_readers(config: BenchConfig, work_dir: Path, stack: ExitStack) -> list[StreamReader]:
    """Return a reader for each installed system, ours first. All store the same rows, and each has read one epoch."""
    num_blocks, block_size, num_shards = _EPOCH[config.size]
    write_soft_targets_cache(work_dir / OURS.folder, num_blocks, block_size, _VOCAB_SIZE, num_shards=num_shards)
    python = config.peers_python or peers_python(default_directory())
    readers = []
    for index, system in enumerate((OURS, *PEERS)):
        directory = work_dir / system.folder
        interpreter = python if system.is_peer else sys.executable
        if not _can_import(interpreter, system.needs):
            print(f"{system.name}: {interpreter} cannot import {system.needs}", file=sys.stderr)
            continue
        reader = StreamReader(system, interpreter, directory, work_dir / f"reader-{index}")
        stack.enter_context(closing(reader))
        if not directory.exists():
            reader.ask(do="write", cache=str(work_dir / OURS.folder))
        reader.ask(do="first_epoch")
        readers.append(reader)
    return readers


@functools.cache
def _can_import(python: str, module: str) -> bool:
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


def _measure(figures: _Figures) -> None:
    requests = [(figures.first, "first_epoch"), (figures.later, "later_epoch")]
    if figures.reader.system is OURS:
        requests.append((figures.known, "known_epoch"))
    for answers, do in requests:
        answer = figures.reader.ask(do=do)
        answers.append(answer["num_tokens"] / answer["seconds"])
    figures.first_batch_s.append(figures.reader.ask(do="first_batch")["seconds"])


def _speeds(ours: _Figures, peers: list[_Figures]) -> Iterator[Comparison]:
    compressed = [peer for peer in peers if peer.reader.system.is_compressed]
    best = max(compressed, key=lambda peer: median(peer.first), default=None)
    for state, our_values in (("new to this machine", ours.first), ("checked before", ours.known)):
        for peer in peers:
            yield Comparison(
                what=f"first epoch, rows {state}{', best compressed peer' if peer is best else ''}",
                ours=OURS.name,
                reference=peer.reader.system.name,
                our_values=our_values,
                reference_values=peer.first,
                unit="tokens/s",
                target=_LEAST_SPEED_RATIO if peer is best else None,
                more_is_better=True,
            )
    for peer in peers:
        yield Comparison(
            what="later epoch",
            ours=OURS.name,
            reference=peer.reader.system.name,
            our_values=ours.later,
            reference_values=peer.later,
            unit="tokens/s",
            more_is_better=True,
        )


def _first_batch_of_default_shards(config: BenchConfig, work_dir: Path) -> Comparison:
    """Compare the time to the first batch with its limit, on shards of precompute's default size."""
    num_blocks, block_size, num_shards = _DEFAULT_SHARDS[config.size]
    directory = work_dir / "default-shards"
    write_soft_targets_cache(directory, num_blocks, block_size, _VOCAB_SIZE, num_shards=num_shards)
    with closing(StreamReader(OURS, sys.executable, directory, work_dir / "reader-default-shards")) as reader:
        seconds = [reader.ask(do="first_batch")["seconds"] for _ in range(config.rounds + 1)][1:]
    return Comparison(
        what="first batch, shards of the default size",
        ours=OURS.name,
        reference="limit",
        our_values=seconds,
        reference_values=[_MOST_SECONDS] * config.rounds,
        unit="s",
        target=1.0,
    )


def _first_batches(ours: _Figures, peers: list[_Figures]) -> Iterator[Comparison]:
    for peer in peers:
        yield Comparison(
            what="first batch",
            ours=OURS.name,
            reference=peer.reader.system.name,
            our_values=ours.first_batch_s,
            reference_values=peer.first_batch_s,
            unit="s",
        )


def _memory(ours: StreamReader, rounds: int) -> Comparison:
    """Compare the process's peak memory in the third epoch with the first, without reopening the cache."""
    peaks = []
    for _ in range(rounds):
        peaks.append([ours.ask(do=do)["peak_bytes"] for do in ("first_epoch", "later_epoch", "later_epoch")])
    return Comparison(
        what="peak memory",
        ours="third epoch",
        reference="first epoch",
        our_values=[third for _, _, third in peaks],
        reference_values=[first for first, _, _ in peaks],
        unit="bytes",
        target=_MOST_MEMORY_RATIO,
    )


def _bytes(ours: StreamReader, peer: StreamReader) -> Comparison:
    return Comparison(
        what="bytes on disk",
        ours=OURS.name,
        reference=peer.system.folder,
        our_values=[_num_bytes(ours.directory)],
        reference_values=[_num_bytes(peer.directory)],
        unit="bytes",
    )


def _num_bytes(directory: Path) -> float:
    return float(sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()))
