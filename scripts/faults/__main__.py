"""Inject faults into caches and runs, and check that nothing is lost.

    python -m scripts.faults                    # some minutes
    python -m scripts.faults --kills 20 --flips 500 --seed 1

The program kills writers and trainers at random times and at every kind of step, flips bits, refuses writes, and lets
writers race. A rerun must leave exactly the files that an undisturbed run leaves, and every damage must be reported.
Prints one table. Losses go to standard error, and the exit status is 1 if there are any.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro

from storage.command import run_command
from storage.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SoakConfig:
    """Number of faults of each kind."""

    kills: int = 200
    """Precompute runs to kill at random times, and as many at chosen steps. Races and killed trainers are fewer."""
    flips: int = 10_000
    """Bits to flip."""
    seed: int = 0
    """Seed of the times and places of faults."""
    refusals: int | None = None
    """Writes to refuse. None refuses every step of a run with every error."""
    out: Path | None = None
    """Empty directory to work in, which is kept. None uses a temporary directory."""

    def __post_init__(self) -> None:
        if min(self.kills, self.flips, 0 if self.refusals is None else self.refusals) < 0:
            raise ConfigError("--kills, --flips and --refusals must not be negative")
        if self.out is not None and self.out.exists() and any(self.out.iterdir()):
            raise ConfigError(f"--out {self.out}: not empty; name another directory")


def main() -> int:
    """Inject all faults and print the table."""
    config = tyro.cli(SoakConfig, prog="python -m scripts.faults", description=__doc__)
    directory = config.out or Path(tempfile.mkdtemp(prefix="teachonce-soak-"))
    try:
        return soak(config, directory.resolve())
    finally:
        if config.out is None:
            shutil.rmtree(directory, ignore_errors=True)


def soak(config: SoakConfig, directory: Path) -> int:
    """Inject all faults, working in `directory`. Return 1 when something was lost, else 0."""
    from scripts.faults import flips, kills, races, writes
    from scripts.faults.bench import make_bench
    from scripts.faults.tally import Tally

    tally, rng = Tally(), random.Random(config.seed)
    bench = make_bench(directory)
    cache = kills.Target(bench, "precompute", bench.precompute)
    student = kills.Target(
        bench, "trainer", lambda out: bench.train(cache.undisturbed, out), ignored=("metrics.jsonl",)
    )
    few, fewer = -(-config.kills // 8), -(-config.kills // 20)

    def refuse() -> None:
        writes.refuse_writes(cache, config.refusals, rng, tally)
        writes.limit_file_size(cache, fewer, tally, lambda: bench.precompute_command(cache.out))
        writes.fill_file_system(cache, [24, 96, 160][: config.kills // 20], tally, bench.precompute_arguments())

    def race() -> None:
        for rival in races.rivals(bench, cache):
            races.race_freely(rival, fewer, rng, tally)
            races.race_in_turns(rival, few, rng, tally)

    parts: dict[str, Callable[[], None]] = {
        "kills": lambda: kills.kill_at_random_times(cache, config.kills, rng, tally),
        "kills at steps": lambda: kills.kill_at_steps(cache, config.kills, rng, tally),
        "killed trainers": lambda: kills.kill_at_random_times(student, fewer, rng, tally),
        "killed trainers at steps": lambda: kills.kill_at_steps(student, fewer, rng, tally),
        "flipped bits": lambda: flips.flip_bits(cache.undisturbed, config.flips, rng, tally, whole_every=25),
        "truncations": lambda: flips.truncate(cache.undisturbed, tally),
        "refused writes": refuse,
        "races": race,
    }
    for name, inject in parts.items():
        started = time.monotonic()
        inject()
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    print(tally.table())
    for loss in tally.losses:
        print(f"lost: {loss}", file=sys.stderr)
    return 1 if tally.losses else 0


if __name__ == "__main__":
    run_command(main)
