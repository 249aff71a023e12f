"""Kill writers with SIGKILL at random times and at every kind of step. A rerun must end with the same bytes."""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from scripts.faults.bench import Bench, difference, snapshot
from scripts.faults.children import Child, Ending, run_in_child, warm_up
from scripts.faults.steps import Moment, at_moment, observed_steps, recorded_moments
from scripts.faults.tally import Tally
from storage.records.identity import PLAN_NAME
from storage.records.manifest import MANIFEST_NAME
from student.run_record import RUN_NAME
from student.training.checkpoint import CHECKPOINT_NAME

_MOST_KILLS_IN_A_ROW = 3


class Target:
    """A run that can be repeated in any directory, with the files that it leaves when nothing disturbs it."""

    def __init__(self, bench: Bench, name: str, work: Callable[[Path], object], ignored: tuple[str, ...] = ()) -> None:
        self._name, self._work, self._ignored = name, work, ignored
        self.out = bench.directory / f"{name}-disturbed"
        self.undisturbed = bench.directory / f"{name}-undisturbed"
        self._spare = bench.directory / f"{name}-spare"
        warm_up(lambda: work(self.undisturbed))
        self.expected = self.snapshot(self.undisturbed)

    def run(self, out: Path | None = None) -> object:
        """Run once, into the directory of disturbed runs unless `out` is given."""
        return self._work(out or self.out)

    def label(self, fault: str) -> str:
        """Return the name of a kind of fault in the table."""
        return f"{self._name} {fault}"

    def fresh(self) -> None:
        """Remove the files of the last disturbed run."""
        shutil.rmtree(self.out, ignore_errors=True)

    def ending_of_rerun(self, out: Path | None = None) -> Ending:
        """Run to the end without a fault and return how the run ended."""
        return run_in_child(lambda: self.run(out))

    def problem_after_rerun(self, out: Path | None = None) -> str | None:
        """Run to the end without a fault. Describe what is lost, or return None when every byte is as expected."""
        ending = self.ending_of_rerun(out)
        if ending.status != 0:
            return f"the rerun failed: {ending}"
        return difference(self.snapshot(out or self.out), self.expected)

    def snapshot(self, directory: Path) -> dict[str, str]:
        """Return the paths of a run with their sha256, without the ignored files."""
        return {name: sha256 for name, sha256 in snapshot(directory).items() if name not in self._ignored}

    @functools.cached_property
    def seconds(self) -> float:
        """Duration of an undisturbed run."""
        shutil.rmtree(self._spare, ignore_errors=True)
        started = time.monotonic()
        run_in_child(lambda: self._work(self._spare))
        return time.monotonic() - started

    @functools.cached_property
    def moments(self) -> list[Moment]:
        """All moments of a run, in order."""

        def observe(child: Child) -> None:
            for moment in recorded_moments(self._spare, lambda: self._work(self._spare)):
                child.say(f"moment {moment.action}|{moment.when}|{moment.subject}")

        shutil.rmtree(self._spare, ignore_errors=True)
        child = Child(observe)
        ending = child.wait()
        if ending.status != 0:
            raise RuntimeError(f"the observed run failed: {ending}")
        told = [line.removeprefix("moment ").split("|") for line in child.said]
        return [Moment(action=action, when=when, subject=subject) for action, when, subject in told]


def kill_at_random_times(target: Target, num_kills: int, rng: random.Random, tally: Tally) -> None:
    """Send SIGKILL at random times: up to three runs in a row are killed before a run may end."""
    part = target.label("killed at a random time")
    left = num_kills
    while left > 0:
        target.fresh()
        places = []
        for _ in range(min(left, rng.randint(1, _MOST_KILLS_IN_A_ROW))):
            child = Child(lambda child: target.run())
            time.sleep(rng.uniform(0, 1.1 * target.seconds))
            place = stage_of(target.out)
            child.kill()
            if child.wait().status == -signal.SIGKILL:
                places.append(place)
        problem = target.problem_after_rerun()
        for place in places:
            tally.add(part, place, problem)
        left -= len(places)


def kill_at_steps(target: Target, num_kills: int, rng: random.Random, tally: Tally) -> None:
    """Let the process kill itself at chosen moments: each kind of moment once, then more until num_kills."""
    for index in chosen_moments(target.moments, num_kills, rng):
        target.fresh()
        moment = target.moments[index]
        problem = kill_once(target, index)
        if problem is None and rng.random() < 0.25:  # the rerun is killed as well
            later = rng.randrange(len(target.moments))
            ending = _run_and_die(target, later)
            if ending.status not in (0, -signal.SIGKILL):
                problem = f"the rerun, to be killed at moment {later}, failed: {ending}"
        problem = problem or target.problem_after_rerun()
        detail = None if problem is None else f"moment {index} ({moment}): {problem}"
        tally.add(target.label("killed at a step"), f"{moment.subject}, {moment.action}", detail)


def kill_once(target: Target, index: int) -> str | None:
    """Kill a run at its index-th moment. Return a description when it ended in another way, else None."""
    ending = _run_and_die(target, index)
    return None if ending.status == -signal.SIGKILL else f"did not get to this moment: {ending}"


def _run_and_die(target: Target, index: int) -> Ending:
    def run() -> None:
        with observed_steps(target.out, at_moment(index, lambda moment: os.kill(os.getpid(), signal.SIGKILL))):
            target.run()

    return run_in_child(run)


def chosen_moments(moments: list[Moment], number: int, rng: random.Random) -> list[int]:
    """Choose the indices of `number` moments. Kinds come in random order, each once before any is repeated."""
    by_kind: dict[Moment, list[int]] = defaultdict(list)
    for index, moment in enumerate(moments):
        by_kind[moment].append(index)
    for indices in by_kind.values():
        rng.shuffle(indices)
    kinds = list(by_kind.values())
    rng.shuffle(kinds)
    chosen: list[int] = []
    while len(chosen) < number and any(kinds):
        chosen += [indices.pop() for indices in kinds if indices]
    return chosen[:number]


def stage_of(out: Path) -> str:
    """Return the stage of a run, from the files that it has written."""
    if any((out / name).exists() for name in (MANIFEST_NAME, RUN_NAME)):
        return "after publication"
    is_begun = any((out / name).exists() for name in (PLAN_NAME, CHECKPOINT_NAME))
    return "during publication" if is_begun else "before publication"
