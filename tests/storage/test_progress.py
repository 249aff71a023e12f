"""What progress says where there is no terminal, and its bar where there is one."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest

from storage import progress
from storage.progress import Progress


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which passes when the test says so."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_what_was_there_says_nothing_about_the_speed(seconds: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1000, "work", "rows") as bar:
        bar.skip(900)
        seconds[0] += 4
        bar.update(100)
    assert capsys.readouterr().err == "work: 1,000/1,000 rows, 25 rows/s, 4 s\n"


def test_nothing_new_has_no_speed(seconds: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10, "work", "rows") as bar:
        bar.skip(10)
    assert capsys.readouterr().err == "work: 10/10 rows, done before\n"
    with Progress(None, "work", "rows"):
        seconds[0] += 1
    assert capsys.readouterr().err == "work: 0 rows, 0.00 rows/s, 1 s\n"


@pytest.mark.parametrize("method", ["update", "skip"])
def test_a_line_now_and_then(seconds: list[float], capsys: pytest.CaptureFixture[str], method: str) -> None:
    with Progress(1000, "work", "rows") as bar:
        for _ in range(40):
            getattr(bar, method)(1)
            seconds[0] += 1
        assert len(capsys.readouterr().err.splitlines()) == 2


def test_the_bar_of_a_terminal_counts_from_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress(1000, "work", "rows") as bar:
        bar.skip(900)
        bar.update(10)
        found = bar._bar.format_dict
    assert (found["n"], found["initial"], found["rate"]) == (910, 900, None)


def test_a_terminal_or_pipe_that_has_gone_ends_nothing(seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as gone:
        monkeypatch.setattr(sys, "stderr", gone)
        with Progress(2, "work", "rows") as bar:
            for _ in range(2):
                seconds[0] += 20
                bar.update(1)
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            gone.close()
