"""Damage a data set and judge what a system reads from it.

`flip_trial` flips one bit of a finished data set and reads an epoch. `kill_trial` kills a writer, reads its files, runs
the writer again and reads again. A judgement is one of the outcomes listed here.
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.peers.client import Worker
from scripts.peers.worker import Answer
from scripts.support.rows import OTHER_COLUMNS

NAMED, OTHER_ERROR, LATE_ERROR = "error that names the file", "error that does not", "wrong rows, then an error"
DIED, NO_ANSWER = "process died", "no answer in time"
WRONG, MISSING, REPEATED = "wrong rows, no error", "rows missing, no error", "rows repeated, no error"
OTHER = "rows of other columns or types, no error"
LOGGED = "rows missing, error in the log only"
RIGHT = "right rows, no error"
FLIP_OUTCOMES = (NAMED, OTHER_ERROR, LATE_ERROR, DIED, NO_ANSWER, WRONG, OTHER, LOGGED, MISSING, REPEATED, RIGHT)

NOT_KILLED = "writer was done first"
REFUSED = "error"
KILL_OUTCOMES = (REFUSED, LATE_ERROR, DIED, NO_ANSWER, WRONG, OTHER, LOGGED, MISSING, REPEATED, RIGHT, NOT_KILLED)

FINISHED, WAS_COMPLETE = "right rows", "error, but it was complete"
NEEDS_CLEANING, NEVER = "error until the directory is deleted", "error even then"
HANGS, UNREADABLE = "writer does not end", "done, but the reader refuses"
_OUTCOMES_OF_A_WRITER = (FINISHED, WAS_COMPLETE, NEEDS_CLEANING, NEVER, HANGS, UNREADABLE)
RERUN_OUTCOMES = (*_OUTCOMES_OF_A_WRITER, WRONG, OTHER, LOGGED, MISSING, REPEATED)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A worker, a finished data set of its system, the fingerprints of the true rows, and time limits.

    writing_s: seconds of an undisturbed writer from its first file on; timeout_s: limit of a reader or a writer, at
    least ten times what it needs.
    """

    worker: Worker
    pristine: Path
    trial: Path
    truth: Counter[str]
    writing_s: float
    timeout_s: float


def flip_trial(bench: Bench, file: Path, rng: np.random.Generator) -> str:
    """Flip one random bit of `file` (relative to the data set), read an epoch and return the outcome."""
    shutil.copytree(bench.pristine, bench.trial)
    path = bench.trial / file
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)
    answer = bench.worker.read(bench.trial, timeout_s=bench.timeout_s)
    shutil.rmtree(bench.trial)
    return judge(answer, bench.truth, file.name)


def kill_trial(bench: Bench, rng: np.random.Generator) -> tuple[str, str | None]:
    """Kill a writer at a random moment of its writing. Return the outcomes of a reader and of a second run.

    The second outcome is None when the writer had finished before it was killed.
    """
    kill_after_s = float(rng.uniform(0, bench.writing_s))
    killed = bench.worker.write(bench.trial, timeout_s=bench.timeout_s, kill_after_s=kill_after_s)
    if killed.ending != "killed":
        _remove(bench.trial)
        return NOT_KILLED, None
    left = _read_copy(bench)
    rerun = _rerun(bench, was_complete=left == RIGHT)
    _remove(bench.trial)
    return (REFUSED if left in (NAMED, OTHER_ERROR) else left), rerun


def _rerun(bench: Bench, *, was_complete: bool) -> str:
    ending = bench.worker.write(bench.trial, timeout_s=bench.timeout_s).ending
    if ending == "timeout":
        return HANGS
    found = _read_copy(bench)
    if ending == "done":
        return FINISHED if found == RIGHT else found if found in RERUN_OUTCOMES else UNREADABLE
    if was_complete and found == RIGHT:
        return WAS_COMPLETE
    shutil.rmtree(bench.trial)
    bench.worker.write(bench.trial, timeout_s=bench.timeout_s)
    return NEEDS_CLEANING if _read_copy(bench) == RIGHT else NEVER


def _read_copy(bench: Bench) -> str:
    """Read a copy of the data set and judge the rows. The reader cannot change the writer's files, only the copy."""
    copy = bench.trial.with_name(f"{bench.trial.name}-copy")
    shutil.copytree(bench.trial, copy)
    answer = bench.worker.read(copy, timeout_s=bench.timeout_s)
    shutil.rmtree(copy)
    return judge(answer, bench.truth, "")


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


def judge(answer: Answer, truth: Counter[str], culprit: str) -> str:
    """Return the outcome of a reader's answer when the file named `culprit` was damaged."""
    found = Counter(answer.rows)
    wrong = found.keys() - truth.keys()
    match answer.ending:
        case "timeout":
            return NO_ANSWER
        case "died":
            return DIED
        case "error" if wrong:
            return LATE_ERROR
        case "error":
            return NAMED if culprit and culprit in answer.error else OTHER_ERROR
    if wrong:
        return OTHER if wrong == {OTHER_COLUMNS} else WRONG
    if truth - found:
        return LOGGED if answer.has_logged_error else MISSING
    return REPEATED if found - truth else RIGHT
