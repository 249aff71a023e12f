"""The busy neighbour is busy from the beginning, and ends with the context or with the process that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.support.neighbour import busy_neighbour
from tests.places import ROOT

START_AND_WAIT = """
import time
from scripts.support.neighbour import busy_neighbour
with busy_neighbour("a busy loop"):
    print("inside", flush=True)
    time.sleep(600)
"""


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def test_it_is_busy_inside_the_context_only() -> None:
    before = children_of(os.getpid())
    with busy_neighbour("a busy loop"):
        (neighbour,) = set(children_of(os.getpid())) - set(before)
        ticks = cpu_ticks(neighbour)
        deadline = time.monotonic() + 30
        while cpu_ticks(neighbour) < ticks + 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert children_of(os.getpid()) == before


def test_it_ends_when_its_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", START_AND_WAIT], stdout=subprocess.PIPE, cwd=ROOT)
    assert parent.stdout
    assert parent.stdout.readline()
    (neighbour,) = children_of(parent.pid)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + 30
    while is_running(neighbour):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_unknown_kind_is_said() -> None:
    with pytest.raises(RuntimeError, match="neighbour"), busy_neighbour("nobody"):
        pass
