"""Whoever leaves the work directory last cleans it up, and nothing that others use."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.work.work_directory import work_directory
from storage.writing.destinations import Destination, open_destination
from tests.other_users import give_away, without_rights


@pytest.fixture
def destination(tmp_path: Path) -> Destination:
    return open_destination(tmp_path / "cache")


@contextlib.contextmanager
def worker_being_killed(destination: Destination) -> Iterator[None]:
    """It holds the lock for 0.3 seconds after whoever is inside has left."""
    lock = os.open(destination.work_dir / "lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_SH)
    try:
        yield
    finally:
        threading.Timer(0.3, os.close, (lock,)).start()


@contextlib.contextmanager
def made_anew(destination: Destination) -> Iterator[None]:
    """Another run in a new directory of the same name, which stays when whoever is inside leaves."""
    shutil.rmtree(destination.work_dir)
    with work_directory(destination):
        yield


def test_a_run_that_fails_waits_for_workers_that_are_being_killed(destination: Destination) -> None:
    with pytest.raises(ZeroDivisionError), work_directory(destination), worker_being_killed(destination):
        1 / 0  # noqa: B018
    assert not destination.work_dir.exists()


def test_a_directory_that_others_are_in_stays(destination: Destination) -> None:
    with work_directory(destination):
        with pytest.raises(ZeroDivisionError), work_directory(destination):
            1 / 0  # noqa: B018
        assert (destination.work_dir / "lock").exists()


def test_a_directory_that_others_made_anew_stays(destination: Destination) -> None:
    first, others = work_directory(destination), made_anew(destination)
    first.__enter__()
    with others:
        first.__exit__(None, None, None)
        assert (destination.work_dir / "lock").exists()


def test_users_who_may_write_the_same_directory_share_it(destination: Destination) -> None:
    with work_directory(destination):
        give_away(destination.work_dir, 0o777)
        (destination.work_dir / "lock").chmod(0o444)
        with without_rights(), work_directory(destination):
            pass
        assert (destination.work_dir / "lock").exists()
