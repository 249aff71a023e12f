"""Inject each kind of fault in turn into one small cache and one small student."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from scripts.faults import flips, kills, races, writes
from scripts.faults.bench import make_bench
from scripts.faults.config import SoakConfig
from scripts.faults.tally import Tally


def soak(config: SoakConfig, directory: Path) -> int:
    """Inject all faults, working in `directory`. Return 1 when something was lost, else 0."""
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
