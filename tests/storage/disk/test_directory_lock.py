"""Who may write in a directory, and what is left of one in which nothing was written."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from storage.disk.directory_lock import only_writer
from storage.errors import ConfigError, WriteRefusedError


def test_a_directory_has_one_writer_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with only_writer(out, "trial"):
        (out / "file").write_text("kept")
        with pytest.raises(ConfigError, match="another trial writes here"), only_writer(out, "trial"):
            pass
    with only_writer(out, "trial"):
        pass
    assert (out / "file").read_text() == "kept"


def test_only_what_was_made_and_stayed_empty_is_removed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for out in (tmp_path / "mine" / "a" / "b", tmp_path / "mine"):
        with only_writer(out, "trial"):
            assert out.is_dir()
        assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_a_writer_that_locked_a_removed_directory_makes_it_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer left, and removed what had stayed empty, between this one's opening and its lock."""
    out, original = tmp_path / "out", fcntl.flock
    removed: list[Path] = []

    def flock(descriptor: int, how: int) -> None:
        if not removed:
            removed.append(out)
            out.rmdir()
        original(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with only_writer(out, "trial"):
        assert out.is_dir()
        with pytest.raises(ConfigError), only_writer(out, "trial"):
            pass


def test_a_current_directory_that_was_removed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    with pytest.raises(WriteRefusedError), only_writer(Path("out"), "trial"):
        pass


@pytest.mark.parametrize(("error", "is_refused"), [(errno.ENOLCK, False), (errno.EBADF, False), (errno.EIO, True)])
def test_a_file_system_without_locks_excludes_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, is_refused: bool
) -> None:
    def flock(*arguments: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)
    if is_refused:
        with pytest.raises(WriteRefusedError), only_writer(tmp_path / "out", "trial"):
            pass
    else:
        with only_writer(tmp_path / "out", "trial"):
            (tmp_path / "out" / "file").write_text("written")
    assert (tmp_path / "out" / "file").exists() is not is_refused
