"""Test how storage formats handle a flipped bit and a killed writer: ours, mosaicml-streaming and litdata.

    python -m scripts.peers
    python -m scripts.peers --peers-python OTHER_ENVIRONMENT/bin/python

All formats store the same rows, and each trial judges the rows that are read, not what a library promises. The other
libraries' pinned requirements conflict with ours, so they need a separate environment, made with
`pip install mosaicml-streaming litdata`. A system that cannot be imported has an empty column. SIGKILL keeps the
operating system's page cache, so the effect of a power cut is not measured. "Right rows" after a flip in an index means
that the reader did not use that file or field. "The log" is a traceback that a thread prints to standard error while
the loop over the rows ends as if the epoch were over.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro

from scripts.peers import ours
from scripts.peers.client import Worker
from scripts.peers.trials import FLIP_OUTCOMES, KILL_OUTCOMES, RERUN_OUTCOMES, Bench, flip_trial, kill_trial
from scripts.support import lit, mosaic
from scripts.support.report import markdown_table
from scripts.support.rows import NUM_ROWS, fingerprint, make_row
from scripts.support.system import System
from storage.command import run_command
from storage.progress import Progress

SYSTEMS = (*ours.SYSTEMS, *mosaic.SYSTEMS, *lit.SYSTEMS)
# Share of flips in files that hold rows. The other flips are in indexes and records.
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


def main() -> None:
    """Run the trials and print the tables."""
    run_command(lambda: _run(tyro.cli(CompareConfig, description=__doc__)))


def _run(config: CompareConfig) -> int:
    print(report([compare(system, config) for system in SYSTEMS]))
    return 0


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


def report(columns: Sequence[Column]) -> str:
    """Return the configurations and the four tables, in Markdown."""
    return "\n\n".join(
        [
            "\n".join(_describe(column) for column in columns),
            _table(
                "one bit flipped in a file that holds rows", columns, FLIP_OUTCOMES, [c.data_flips for c in columns]
            ),
            _table("one bit flipped in an index or record", columns, FLIP_OUTCOMES, [c.index_flips for c in columns]),
            _table("writer killed, then read", columns, KILL_OUTCOMES, [c.kills for c in columns]),
            _table("writer killed, run again, read", columns, RERUN_OUTCOMES, [c.reruns for c in columns]),
        ]
    )


def _describe(column: Column) -> str:
    if column.versions is None:
        return f"- {column.system.name}: not installed ({column.missing})"
    versions = ", ".join(f"{name} {version}" for name, version in column.versions.items())
    return f"- {column.system.name}: {column.system.configuration}; {versions}; time limit {column.timeout_s:.0f} s"


def _table(title: str, columns: Sequence[Column], outcomes: Sequence[str], counters: Sequence[Counter[str]]) -> str:
    """Return a table with a row for each outcome of any system. Cells of a system that is not installed are empty."""
    rows = [
        [outcome, *("" if c.versions is None else str(n[outcome]) for c, n in zip(columns, counters, strict=True))]
        for outcome in outcomes
        if any(counter[outcome] for counter in counters)
    ]
    return markdown_table([title, *(column.system.name for column in columns)], rows)


if __name__ == "__main__":
    main()
