"""Refuse writes at every step.

A run must end with one clear error and leave nothing half published. A rerun must end with the bytes of an undisturbed
run.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from scripts.faults.bench import difference, snapshot
from scripts.faults.children import Ending, run_in_child
from scripts.faults.kills import Target, chosen_moments
from scripts.faults.steps import Hook, Moment, observed_steps
from scripts.faults.tally import Tally
from storage.disk.files import TEMPORARY_PREFIX
from storage.errors import CacheError
from storage.reading.verification import verify_cache
from storage.records.commits import read_commit, read_plan
from storage.records.identity import PLAN_NAME
from storage.records.manifest import MANIFEST_NAME
from storage.shards.shard import check_file
from storage.writing.directory_destination import WORK_DIR

ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
# A full disk or quota stays full. An I/O error happens once.
_LASTING = (errno.ENOSPC, errno.EDQUOT)
_NEEDS_ROOM = ("mkdir", "open", "write")
# Files that readers ignore and the next run removes.
_LEFTOVERS = (WORK_DIR, TEMPORARY_PREFIX)


def refusing(index: int, error: int) -> Hook:
    """Return a hook that raises `error` at the index-th moment.

    Without space, all later steps that need space fail too.
    """
    met = 0

    def hook(moment: Moment) -> None:
        nonlocal met
        met += 1
        is_first = met == index + 1
        if is_first or (met > index and error in _LASTING and can_fail(moment) and moment.action in _NEEDS_ROOM):
            raise OSError(error, os.strerror(error))

    return hook


def refuse_writes(target: Target, num_faults: int | None, rng: random.Random, tally: Tally) -> None:
    """Fail one moment in each run: all moments with each error, or num_faults of them."""
    fallible = [index for index, moment in enumerate(target.moments) if can_fail(moment)]
    faults = [(index, error) for index in fallible for error in ERRORS]
    if num_faults is not None:
        chosen = chosen_moments([target.moments[index] for index in fallible], num_faults, rng)
        faults = [(fallible[i], ERRORS[number % len(ERRORS)]) for number, i in enumerate(chosen)]
    for index, error in faults:
        target.fresh()
        moment = target.moments[index]
        problem = problem_of_refusal(target, index, error)
        detail = None if problem is None else f"{os.strerror(error)} at moment {index} ({moment}): {problem}"
        tally.add("refused write", f"{moment.subject}, {moment.action}", detail)


def problem_of_refusal(target: Target, index: int, error: int) -> str | None:
    """Fail one moment of a run, then rerun without a fault. Describe what is wrong, or return None."""

    def run() -> None:
        with observed_steps(target.out, refusing(index, error)):
            target.run()

    ending = run_in_child(run)
    if ending.status == 0:  # the directory existed, a retry succeeded, or only work files remain
        left = {name: sha256 for name, sha256 in target.snapshot(target.out).items() if not name.startswith(_LEFTOVERS)}
        return difference(left, target.expected) or target.problem_after_rerun()
    may_be_finished = target.moments[index].subject == "manifest"
    problem = _problem_of_error(ending, os.strerror(error))
    problem = problem or problem_of_remains(target.out, target.expected, may_be_finished=may_be_finished)
    return problem or target.problem_after_rerun()


def problem_of_remains(out: Path, expected: dict[str, str], *, may_be_finished: bool) -> str | None:
    """Describe what is wrong in a cache whose writer failed, or return None.

    may_be_finished: the fault came while the manifest was published, so a manifest may exist.
    """
    if (out / MANIFEST_NAME).exists():
        if not may_be_finished:
            return "there is a manifest"
        problems = verify_cache(out).problems
        return f"the cache is published, and damaged: {problems[0]}" if problems else None
    for path in out.glob("commits/*.json"):
        name = path.relative_to(out).as_posix()
        if snapshot(out)[name] != expected.get(name):
            return f"{name} is not as in the undisturbed run"
    try:
        for key in read_plan(out).planned_keys() if (out / PLAN_NAME).exists() else []:
            record = read_commit(out, key)
            if record is not None:
                check_file(out, record)
    except CacheError as error:
        return f"a committed shard is damaged: {error}"
    return None


def limit_file_size(target: Target, num_limits: int, tally: Tally, main: Callable[[], object]) -> None:
    """Limit the size of files that the process may write, from 0 to just below the largest file needed.

    main: sets sys.argv and runs the command's entry point.
    """
    sizes = [path.stat().st_size for path in target.undisturbed.rglob("*") if path.is_file()]
    limits = sorted({max(sizes) * number // num_limits for number in range(num_limits)} | {max(sizes) - 1})
    for limit in limits:
        target.fresh()
        read_end, write_end = os.pipe()

        def run(limit: int = limit, write_end: int = write_end) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            os.dup2(write_end, 2)
            main()

        status = run_in_child(run).status
        os.close(write_end)
        with open(read_end) as errors:
            problem = _problem_of_command(status, errors.read(), "File too large")
        problem = (
            problem
            or problem_of_remains(target.out, target.expected, may_be_finished=False)
            or target.problem_after_rerun()
        )
        detail = None if problem is None else f"at most {limit} bytes: {problem}"
        tally.add("refused write", "real limit on file size", detail)


def fill_file_system(target: Target, sizes_kb: list[int], tally: Tally, arguments: list[str]) -> None:
    """Fill a real disk: run teachonce-precompute in a tmpfs of a few kilobytes, enlarge the tmpfs and run it again.

    arguments: flags of the command, without --out. Does nothing where no tmpfs can be mounted.
    """
    if not _can_mount():
        return
    for size_kb in sizes_kb:
        target.fresh()
        mount = target.out.with_name("small-disk")
        errors = target.out.with_name("small-disk-stderr")
        mount.mkdir(exist_ok=True)
        errors.write_text("")
        script = (
            'mount -t tmpfs -o size="$3"k none "$1" || exit 90\n'
            'disk="$1" errors="$2" out="$4"; shift 4\n'
            '"$@" --out "$disk/cache" 2> "$errors"\n'
            "status=$?\n"
            'mount -o remount,size=64m "$disk" || exit 91\n'
            '"$@" --out "$disk/cache" > /dev/null 2>&1 || exit 92\n'
            'cp -R "$disk/cache" "$out"\n'
            "exit $status"
        )
        command = [sys.executable, "-c", "from pipeline.cli import main; main()", *arguments]
        places = [str(mount), str(errors), str(size_kb), str(target.out)]
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", script, "sh", *places, *command], check=False, capture_output=True
        )
        problem = _problem_of_command(done.returncode, errors.read_text(), "No space left on device")
        problem = problem or difference(snapshot(target.out), target.expected)
        detail = None if problem is None else f"{size_kb} kB: {problem}"
        tally.add("refused write", "real full disk", detail)


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /mnt"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def can_fail(moment: Moment) -> bool:
    """Whether the operating system could refuse the step at this moment. Removal is left out: it can lose nothing."""
    return (moment.when == "before" and moment.action != "remove") or moment.when == "halfway through"


def _problem_of_error(ending: Ending, reason: str) -> str | None:
    if ending.error_class != "WriteRefusedError":
        return f"expected WriteRefusedError, got {ending}"
    if reason not in ending.error or "\n" in ending.error:
        return f"the message is not one clear line: {ending.error!r}"
    return None


def _problem_of_command(status: int, errors: str, reason: str) -> str | None:
    lines = [line for line in errors.splitlines() if line.strip()]
    if status != 2 or len(lines) != 1 or reason not in lines[0]:
        return f"expected exit code 2 and one line with {reason!r}, got {status} and {lines[-1:]} ({len(lines)} lines)"
    return None
