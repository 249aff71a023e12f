"""Processes share items, are missed by name when they are killed, and end with the process that began them."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.processes import map_in_processes
from tests.places import ROOT
from tests.storage import in_processes


def test_a_bug_keeps_its_traceback() -> None:
    start = functools.partial(functools.partial, in_processes.fail_at_three)
    done: list[tuple[int, int, float]] = []
    with pytest.raises(ZeroDivisionError, match="division by zero") as bug:
        map_in_processes(start, range(1, 5), 1, killed=lambda item, how: 0, done=lambda *result: done.append(result))
    assert "in fail_at_three" in str(bug.value.__cause__)
    assert done == [(0, 1, -0.5), (1, 2, -2.0)]


def test_what_ended_a_process_is_told_by_number_and_by_name_where_there_is_one() -> None:
    start = functools.partial(functools.partial, in_processes.be_killed)
    told: dict[int, str | None] = {}
    numbers = [int(signal.SIGKILL), int(signal.SIGRTMIN) + 1]
    map_in_processes(start, numbers, 2, killed=lambda number, how: how, done=lambda _, n, how: told.update({n: how}))
    assert told == {numbers[0]: "signal 9, SIGKILL", numbers[1]: f"signal {numbers[1]}"}


SCRIPT = """
import os, sys, time
from pathlib import Path
from storage.command import run_command
from storage.processes import map_in_processes
def work(directory):
    (Path(directory) / str(os.getpid())).touch()
    time.sleep(60)
def start():
    return work
def main():
    map_in_processes(start, [sys.argv[1]] * 4, int(sys.argv[2]), killed=print, done=print)
"""
GUARDED = SCRIPT + 'if __name__ == "__main__":\n    run_command(main)\n'
UNGUARDED = SCRIPT + "run_command(main)\n"


def begin(tmp_path: Path, script: str, num_processes: int) -> subprocess.Popen[str]:
    (tmp_path / "script.py").write_text(script)
    (tmp_path / "begun").mkdir()
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "begun"), str(num_processes)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_until(is_so: Callable[[], bool], seconds: float = 60) -> None:
    give_up_at = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def is_alive(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_all_end_with_the_process_that_began_them(tmp_path: Path, end: signal.Signals) -> None:
    parent = begin(tmp_path, GUARDED, 2)
    wait_until(lambda: len(list((tmp_path / "begun").iterdir())) == 2)
    (os.killpg if end == signal.SIGINT else os.kill)(parent.pid, end)  # as Ctrl-C does
    _, said = parent.communicate(timeout=30)
    assert parent.returncode == (130 if end == signal.SIGINT else -end)
    wait_until(lambda: not any(is_alive(path.name) for path in (tmp_path / "begun").iterdir()), 10)
    assert "Traceback" not in said


def test_a_script_that_is_not_ready_for_processes_is_told_so(tmp_path: Path) -> None:
    _, said = begin(tmp_path, UNGUARDED, 1).communicate(timeout=60)
    assert "a further process could not start (exit code 1); ask for one job" in said
    assert not list((tmp_path / "begun").iterdir())
