"""Unpacking: where a cache may go, and that all of it is on the disk before it has its name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from storage.errors import ArchiveError, ConfigError
from storage.sharing.archive import unpack
from tests.storage.stopping import snapshot


def test_an_empty_directory_is_taken_and_parents_are_made(packed_file: Path, tmp_path: Path, small_cache: Path) -> None:
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        unpack(packed_file, target)
        assert snapshot(target) == snapshot(small_cache)
        assert [path.name for path in target.parent.iterdir() if path.name.startswith(".")] == []


def test_a_relative_path_is_taken(
    packed_file: Path, tmp_path: Path, small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    unpack(packed_file, Path("restored"))
    assert snapshot(tmp_path / "restored") == snapshot(small_cache)


@pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling link", "current directory"])
def test_a_path_that_is_taken_is_not_touched(
    packed_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    target, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    elsewhere.mkdir()
    match kind:
        case "file":
            target.write_bytes(b"precious")
        case "directory":
            target.mkdir()
            (target / "precious").write_bytes(b"precious")
        case "link":
            target.symlink_to(elsewhere)
        case "dangling link":
            target.symlink_to(tmp_path / "nowhere")
        case _:
            target.mkdir()
            monkeypatch.chdir(target)
    before = {path: (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*")}
    with pytest.raises(ConfigError, match="already there"):
        unpack(packed_file, Path() if kind == "current directory" else target)
    assert {path: (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_path_that_is_taken_meanwhile_is_not_touched(packed_file: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out" / "there"

    def take(num_bytes: int) -> None:
        if kind == "file":
            target.write_bytes(b"precious")
        else:
            target.mkdir(exist_ok=True)
            (target / "precious").write_bytes(b"precious")

    target.parent.mkdir()
    with pytest.raises(ConfigError, match="meanwhile"):
        unpack(packed_file, target, take)
    assert list(snapshot(target.parent).values()) == [b"precious"]


def test_no_file_to_unpack_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name, problem in (("nowhere", "No such file"), ("directory", "not a file"), ("fifo", "not a file")):
        with pytest.raises(ArchiveError, match=problem) as caught:
            unpack(tmp_path / name, tmp_path / "restored")
        assert caught.value.path == str(tmp_path / name)
    assert not (tmp_path / "restored").exists()


def test_everything_is_on_disk_before_the_cache_has_its_name(
    packed_file: Path, tmp_path: Path, small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    replace = os.replace

    def logged(source: Path, target: Path) -> None:
        at_rename = {os.path.relpath(path, source) for path in synced}
        assert at_rename == {".", *(str(path.relative_to(small_cache)) for path in small_cache.rglob("*"))}
        synced.clear()
        replace(source, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    monkeypatch.setattr(os, "replace", logged)
    unpack(packed_file, tmp_path / "restored")
    assert synced == [str(tmp_path)]
