"""Run all trials of one system."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from scripts.peers import ours
from scripts.peers.client import Worker
from scripts.peers.trials import Bench, flip_trial, kill_trial
from scripts.support import lit, mosaic
from scripts.support.rows import NUM_ROWS, fingerprint, make_row
from scripts.support.system import System
from storage.progress import Progress

SYSTEMS = (*ours.SYSTEMS, *mosaic.SYSTEMS, *lit.SYSTEMS)
# Of all flips, how many hit files that hold rows; the others hit indexes and records.
_DATA_SHARE = 0.75
_FIRST_TIMEOUT_S = 120.0
_LEAST_TIMEOUT_S = 5.0
_SLOWDOWNS = 10


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Number of trials of each system."""

    flips: int = 200
    """Bits to flip, each in a fresh copy."""
    kills: int = 20
    """Writers to kill."""
    seed: int = 0
    """Seed of the rows and of the damage."""
    peers_python: str = sys.executable
    """Python of the environment that has the other libraries."""


@dataclass(kw_only=True)
class Column:
    """Versions of one system and the outcomes of its trials."""

    system: System
    versions: dict[str, str] | None
    missing: str = ""
    timeout_s: float = 0.0
    data_flips: Counter[str] = field(default_factory=Counter)
    index_flips: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    reruns: Counter[str] = field(default_factory=Counter)


def compare(system: System, config: CompareConfig) -> Column:
    """Run all trials of one system."""
    python = config.peers_python if system.is_peer else sys.executable
    with (
        tempfile.TemporaryDirectory() as name,
        closing(Worker(system, python, config.seed, Path(name) / "worker")) as worker,
    ):
        column = Column(system=system, versions=worker.versions, missing=worker.missing)
        if worker.versions is not None:
            bench = _prepare(worker, Path(name), config.seed)
            column.timeout_s = bench.timeout_s
            with Progress(config.flips + config.kills, system.name, "trials") as progress:
                _flip(bench, column, config, progress)
                _kill(bench, column, config, progress)
    return column


def _prepare(worker: Worker, directory: Path, seed: int) -> Bench:
    """Write and read undamaged data, and measure the time.

    Raises RuntimeError when the rows that are read differ from those written.
    """
    truth = Counter(fingerprint(make_row(seed, row_id)) for row_id in range(NUM_ROWS))
    pristine = directory / "pristine"
    warm_up, written = (worker.write(path, timeout_s=_FIRST_TIMEOUT_S) for path in (directory / "warm-up", pristine))
    answer = worker.read(pristine, timeout_s=_FIRST_TIMEOUT_S)
    errors = [a.error or a.ending for a in (warm_up, written, answer) if a.ending != "done"]
    if errors or Counter(answer.rows) != truth:
        raise RuntimeError(f"undamaged data do not come back: {errors}")
    return Bench(
        worker=worker,
        pristine=pristine,
        trial=directory / "trial",
        truth=truth,
        writing_s=written.seconds,
        timeout_s=max(_LEAST_TIMEOUT_S, _SLOWDOWNS * max(written.seconds, answer.seconds)),
    )


def _flip(bench: Bench, column: Column, config: CompareConfig, progress: Progress) -> None:
    """Run the flip trials, going through the files in turn."""
    rng = np.random.default_rng([config.seed, 1])
    files = sorted(path.relative_to(bench.pristine) for path in bench.pristine.rglob("*") if path.is_file())
    files = [file for file in files if (bench.pristine / file).stat().st_size]
    data = [file for file in files if file.name.endswith(column.system.data_suffixes)]
    index = [file for file in files if file not in data]
    num_data = round(config.flips * _DATA_SHARE)
    for chosen, count, outcomes in (
        (data, num_data, column.data_flips),
        (index, config.flips - num_data, column.index_flips),
    ):
        for trial in range(count):
            outcomes[flip_trial(bench, chosen[trial % len(chosen)], rng)] += 1
            progress.update(1)


def _kill(bench: Bench, column: Column, config: CompareConfig, progress: Progress) -> None:
    rng = np.random.default_rng([config.seed, 2])
    for _ in range(config.kills):
        left, rerun = kill_trial(bench, rng)
        column.kills[left] += 1
        if rerun is not None:
            column.reruns[rerun] += 1
        progress.update(1)
