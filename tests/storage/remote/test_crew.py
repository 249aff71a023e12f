"""Threads that work through a list stop together, and in time."""

from __future__ import annotations

import threading

import pytest

from storage.errors import StoppedError
from storage.remote import crew as crew_module
from storage.remote.crew import Crew
from tests.failing_thread import start_failing


def test_what_hangs_is_left_when_others_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts and then is silent would hold a thread for minutes."""
    monkeypatch.setattr(crew_module, "_HURRIED_S", 0.01)
    monkeypatch.setattr(crew_module, "_GRACE_S", 0.01)
    crew, silence = Crew(2, lambda num_bytes: None), threading.Event()
    is_under_way = threading.Event()

    def transfer(item: int) -> None:
        is_under_way.set()
        silence.wait()

    worker, errors = start_failing(lambda: crew.map(transfer, [1]))
    assert is_under_way.wait(60)
    crew.hurry()
    worker.join(60)
    is_left = not worker.is_alive()
    silence.set()
    assert is_left
    assert [type(error) for error in errors] == [StoppedError]


def test_what_is_under_way_ends_well_though_others_hurry() -> None:
    crew, is_hurried = Crew(2, lambda num_bytes: None), threading.Event()

    def transfer(item: int) -> int:
        crew.hurry()
        is_hurried.wait(0.05)
        return item + 1

    assert crew.map(transfer, [1, 2, 3]) == [2, 3, 4]
