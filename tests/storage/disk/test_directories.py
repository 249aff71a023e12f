"""What killed writers left is removed and nothing else; a directory is removed as a whole."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from storage.disk.directories import may_write, own_directory, remove_directory, remove_leftovers
from storage.disk.files import TEMPORARY_PREFIX
from tests.other_users import give_away, without_rights
from tests.storage.sharing.merges import refusing


def killed(*args: object, **settings: object) -> None:
    raise KeyboardInterrupt


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / "a.bin", tmp_path / "soft_targets" / "b.tmp", tmp_path / "soft_targets" / "tmp-c"]
    leftovers = [tmp_path / f"{TEMPORARY_PREFIX}1-a", tmp_path / "soft_targets" / f"{TEMPORARY_PREFIX}2-b"]
    for path in kept + leftovers:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    remove_leftovers(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


def test_a_directory_that_is_being_removed_is_whole_or_a_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / ".work"
    (directory / "inside").mkdir(parents=True)
    (directory / "inside" / "file").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_directory(directory)
    [leftover] = tmp_path.iterdir()
    assert leftover.name.startswith(TEMPORARY_PREFIX)
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []
    remove_directory(directory)


@pytest.mark.parametrize(("mode", "allowed"), [(0o755, False), (0o700, False), (0o777, True)])
def test_where_another_user_lets_nobody_write_a_directory_of_one_s_own_stands_beside(
    tmp_path: Path, mode: int, allowed: bool
) -> None:
    another_s = tmp_path / "teachonce"
    assert own_directory(another_s) == another_s, "it is not there yet"
    another_s.mkdir()
    assert own_directory(another_s) == another_s
    give_away(another_s, mode)
    with without_rights():
        assert may_write(another_s) == allowed
        assert own_directory(another_s) == (another_s if allowed else tmp_path / f"teachonce-{os.getuid()}")
        assert may_write(tmp_path)
    assert list(tmp_path.rglob("*")) == [another_s], "to find out leaves nothing behind"


@pytest.mark.parametrize(("code", "is_an_answer"), [(errno.EROFS, True), (errno.EPERM, True), (errno.ENOSPC, False)])
def test_a_full_disk_is_no_question_of_whose_directory_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, is_an_answer: bool
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", refusing(code))
    if is_an_answer:
        assert not may_write(tmp_path)
    else:
        with pytest.raises(OSError, match="No space left"):
            may_write(tmp_path)
