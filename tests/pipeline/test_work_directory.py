"""Whoever leaves the work directory last cleans it up, and nothing that others use."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.work_directory import work_directory
from storage.destinations import Destination, open_destination


@pytest.fixture
def destination(tmp_path: Path) -> Destination:
    return open_destination(tmp_path / "cache")


def test_a_run_that_fails_waits_for_workers_that_are_being_killed(destination: Destination) -> None:
    with pytest.raises(ZeroDivisionError), work_directory(destination):
        of_worker = os.open(destination.work_dir / "lock", os.O_RDWR)
        fcntl.flock(of_worker, fcntl.LOCK_SH)
        threading.Timer(0.3, os.close, (of_worker,)).start()
        1 / 0  # noqa: B018
    assert not destination.work_dir.exists()


def test_a_directory_that_others_are_in_stays(destination: Destination) -> None:
    with work_directory(destination):
        with pytest.raises(ZeroDivisionError), work_directory(destination):
            1 / 0  # noqa: B018
        assert (destination.work_dir / "lock").exists()


def test_a_directory_that_others_made_anew_stays(destination: Destination) -> None:
    with ExitStack() as others:
        with pytest.raises(ZeroDivisionError), work_directory(destination):
            shutil.rmtree(destination.work_dir)
            others.enter_context(work_directory(destination))
            1 / 0  # noqa: B018
        assert (destination.work_dir / "lock").exists()
