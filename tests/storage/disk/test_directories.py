"""What killed writers left is removed and nothing else; a directory is removed as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.disk.directories import remove_directory, remove_leftovers
from storage.disk.files import TEMPORARY_PREFIX


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
