"""Run two writers on one cache at the same time. They must leave a valid cache, or one must say why it cannot go on.

In a race by turns, the first writer pauses at one of its steps. The second then runs to one of its steps, or until it
waits for the first. After that each writer continues in turn to its end or until it waits again. Pairs of steps are
chosen at random.
"""

from __future__ import annotations

import fcntl
import itertools
import platform
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import storage.writing.directory_destination
from pipeline.work.claims import Claims
from scripts.faults.bench import Bench, difference
from scripts.faults.children import Child, Ending
from scripts.faults.kills import Target
from scripts.faults.steps import Hook, Moment, at_moment, observed_steps
from scripts.faults.tally import Tally
from storage.reading.verification import verify_cache
from storage.rows import columns

_FLOATS = {"soft_targets": "entropy", "samples": "completion_logprobs", "beams": "sum_logprobs"}


@dataclass(frozen=True, kw_only=True)
class Rival:
    """Two writers and how they differ.

    has_lock: whether locks exclude others; is_refused: whether one of the writers must be refused with an error.
    """

    name: str
    first: Target
    second: Target
    has_lock: bool = True
    is_refused: bool = False

    def run(self, target: Target, out: Path) -> None:
        """Run one of the two writers on their shared cache."""
        if not self.has_lock:
            fcntl.flock = lambda *args: None
        target.run(out)


def rivals(bench: Bench, first: Target) -> list[Rival]:
    """Return the races: the same run with and without locks, a run with other last bits, a run with other rows."""

    def other_seed(out: Path) -> object:
        return bench.precompute(out, seed=1)

    def other_machine(out: Path) -> object:
        _compute_other_bits()
        return bench.precompute(out)

    other_bits, other_rows = Target(bench, "other-bits", other_machine), Target(bench, "other-rows", other_seed)
    return [
        Rival(name="the same run", first=first, second=first),
        Rival(name="the same run, no lock", first=first, second=first, has_lock=False),
        Rival(name="other last bits, no lock", first=first, second=other_bits, has_lock=False),
        Rival(name="other settings", first=first, second=other_rows, is_refused=True),
    ]


def race_freely(rival: Rival, num_races: int, rng: random.Random, tally: Tally) -> None:
    """Run both at once. The second starts at a random time during the first."""
    for _ in range(num_races):
        rival.first.fresh()
        delay_s = rng.choice((0.0, rng.uniform(0, rival.first.seconds)))
        first, second = (_started(rival, target, pausing=None) for target in (rival.first, rival.second))
        first.go_on()
        time.sleep(delay_s)
        second.go_on()
        problem = problem_of_race(rival, [first.wait(), second.wait()])
        detail = None if problem is None else f"second after {delay_s:.3f} s: {problem}"
        tally.add("race, released together", rival.name, detail)


def race_in_turns(rival: Rival, num_races: int, rng: random.Random, tally: Tally) -> None:
    """Pause the first at a step, and the second at a step or where it waits for the first, then continue in turn."""
    for first_index, moment in itertools.islice(_pairs(rival.first.moments, rng), num_races):
        rival.first.fresh()
        first = _started(rival, rival.first, pausing=lambda child: at_moment(first_index, lambda moment: child.pause()))  # noqa: B023
        first.go_on()
        endings = [first.wait_for_pause()]
        second = _started(rival, rival.second, pausing=lambda child: _at_first(moment, child.pause))  # noqa: B023
        second.go_on()
        endings.append(second.wait_for_pause())
        problem = problem_of_race(rival, _endings_in_turns([first, second], endings))
        stops = f"first at moment {first_index} ({rival.first.moments[first_index]}), second {moment}"
        tally.add("race, step by step", rival.name, None if problem is None else f"{stops}: {problem}")


def _endings_in_turns(children: list[Child], early: list[Ending | None]) -> list[Ending]:
    """Continue paused children in turn until all have ended. A child that waits for a claim holds no claim itself."""
    endings = early
    while None in endings:
        for number, child in enumerate(children):
            if endings[number] is None:
                child.go_on()
                endings[number] = child.wait_for_pause()
    return [ending for ending in endings if ending is not None]


def problem_of_race(rival: Rival, endings: list[Ending]) -> str | None:
    """Describe what is wrong with how two writers ended or with the cache that they left. Return None if nothing is."""
    failed = [ending for ending in endings if ending.status != 0]
    for ending in failed:
        if ending.is_hung or not ending.error_class or "not a TeachonceError" in ending.error_class:
            return f"a writer failed: {ending}"
    if len(failed) == len(endings):
        return f"both writers failed: {failed[0]}; {failed[1]}"
    if rival.has_lock and not rival.is_refused and failed:
        return f"a writer failed: {failed[0]}"
    if rival.is_refused and [ending.error_class for ending in failed] != ["CacheMismatchError"]:
        return f"expected one CacheMismatchError, got {', '.join(map(str, endings))}"
    out = rival.first.out
    problems = verify_cache(out).problems
    if problems:
        return f"the cache is published, and damaged: {problems[0]}"
    if rival.is_refused:
        winner = rival.first if endings[0].status == 0 else rival.second
        return winner.problem_after_rerun(out)
    if rival.has_lock:
        return difference(rival.first.snapshot(out), rival.first.expected)
    return _problem_of_mixture(rival, out)


def _problem_of_mixture(rival: Rival, out: Path) -> str | None:
    """Rerun, then describe what is wrong: a damaged cache, an extra file, or a shard that neither writer made."""
    if rival.second is rival.first:
        return rival.first.problem_after_rerun(out)
    ending = rival.first.ending_of_rerun(out)
    if ending.status != 0:
        return f"the rerun failed: {ending}"
    problems = verify_cache(out).problems
    if problems:
        return f"damaged after a rerun: {problems[0]}"
    found, sides = rival.first.snapshot(out), (rival.first.expected, rival.second.expected)
    if found.keys() != sides[0].keys():
        return difference(dict.fromkeys(found, ""), dict.fromkeys(sides[0], ""))
    foreign = [name for name in found if name.endswith(".arrow") and found[name] not in [side[name] for side in sides]]
    return f"{foreign[0]} is neither writer's" if foreign else None


def _started(rival: Rival, target: Target, pausing: Callable[[Child], Hook] | None) -> Child:
    """Start a child that pauses, then writes. With `pausing` it pauses at that hook and where it waits for a claim."""
    out = rival.first.out

    def work(child: Child) -> None:
        child.pause()
        if pausing is None:
            rival.run(target, out)
        else:
            with observed_steps(out, pausing(child)):
                # A paused writer does not release its claims, so waiting for them would not end.
                Claims.wait = staticmethod(child.pause)  # type: ignore[method-assign]
                rival.run(target, out)

    child = Child(work)
    child.wait_for_pause()
    return child


def _pairs(moments: list[Moment], rng: random.Random) -> Iterator[tuple[int, Moment]]:
    """Yield random pairs: a step of the first writer and a kind of step of the second, mostly steps of publication."""
    kinds = sorted({moment for moment in moments if moment.subject not in ("work files", "directory")}, key=str)
    published = [index for index, moment in enumerate(moments) if moment in kinds]
    while True:
        yield rng.choice([rng.choice(published), rng.randrange(len(moments))]), rng.choice(kinds)


def _at_first(wanted: Moment, action: Callable[[], None]) -> Hook:
    """Return a hook that calls `action` at the first moment that equals `wanted`."""
    is_met = False

    def hook(moment: Moment) -> None:
        nonlocal is_met
        if moment == wanted and not is_met:
            is_met = True
            action()

    return hook


def _compute_other_bits() -> None:
    """Make this process compute like another machine: floats differ in the last bit, and Python has another version."""
    module: Any = storage.writing.directory_destination
    original = module.write_shard

    def write_shard(
        cache_dir: Path, identity: Any, key: Any, first_row_id: int, batches: Iterable[pa.RecordBatch]
    ) -> Any:
        changed = (_with_other_bits(batch, _FLOATS[key.kind]) for batch in batches)
        return original(cache_dir, identity, key, first_row_id, changed)

    module.write_shard = write_shard
    platform.python_version = lambda: "3.99.0"


def _with_other_bits(batch: pa.RecordBatch, name: str) -> pa.RecordBatch:
    column = batch.column(name)
    values = column.flatten().to_numpy(zero_copy_only=False)
    bits = values.view(np.uint16 if values.itemsize == 2 else np.uint32)
    values = np.where(values == 0, bits, bits ^ 1).astype(bits.dtype).view(values.dtype)
    if pa.types.is_fixed_size_list(column.type):
        changed = columns.to_fixed(values, column.type)
    else:
        changed = columns.to_ragged(values, columns.ragged_offsets(batch, name), column.type)
    return batch.set_column(batch.schema.get_field_index(name), batch.schema.field(name), changed)
