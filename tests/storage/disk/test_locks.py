"""Locks on directories that come and go."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from storage.disk.locks import make_and_lock, share_lock


def test_a_directory_that_is_removed_on_the_way_is_made_again(tmp_path: Path) -> None:
    directory, removed = tmp_path / "a" / "b", []

    def lock(descriptor: int) -> None:
        if len(removed) < 3:
            (directory / "lock").unlink()
            directory.rmdir()
            removed.append(descriptor)

    descriptor = make_and_lock(directory, "lock", lock)
    assert os.path.samestat(os.fstat(descriptor), (directory / "lock").stat())
    assert len(removed) == 3
    os.close(descriptor)


def test_where_no_directory_can_be_made_the_systems_answer_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As below /proc, and on some file systems: mkdir itself says that something is missing, for ever."""

    def mkdir(path: Path, **settings: object) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(FileNotFoundError, match="No such file"):
        make_and_lock(tmp_path / "out", "lock", share_lock)
