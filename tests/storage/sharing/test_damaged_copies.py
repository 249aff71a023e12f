"""Damage at a URL is found by a pull and mended by a push; damage here is not pushed."""

from __future__ import annotations

from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from storage.errors import HashMismatchError, MissingFileError, TransferError
from storage.sharing.transfer import pull, push
from tests.storage.sharing.copies import COMMIT, IMPATIENT, NUM_FILES, QUICK, SHARD, damage, remote_files
from tests.storage.stopping import snapshot


@pytest.mark.parametrize("name", [SHARD, COMMIT, "README.md"])
@pytest.mark.parametrize("is_finished", [True, False])
def test_damage_there_is_found_and_mended_by_a_push(source: Path, name: str, is_finished: bool) -> None:
    push(source, "memory://bucket/cache", policy=QUICK)
    if not is_finished:
        MemoryFileSystem().rm("/bucket/cache/manifest.json")
    damage(name)
    pushed = push(source, "memory://bucket/cache", policy=QUICK)
    assert remote_files() == snapshot(source)
    assert pushed.num_copied_files >= 1
    assert pushed.num_copied_files + pushed.num_kept_files == NUM_FILES


def test_damage_that_cannot_be_mended_leaves_no_manifest(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_file = MemoryFileSystem.put_file

    def spoils(self: MemoryFileSystem, local: str, path: str, **settings: object) -> None:
        put_file(self, local, path, **settings)
        if path.endswith(SHARD):
            damage(SHARD)

    monkeypatch.setattr(MemoryFileSystem, "put_file", spoils)
    with pytest.raises(TransferError, match=rf"{SHARD}: gave up .* read back differs"):
        push(source, "memory://bucket/cache", policy=IMPATIENT)
    assert "manifest.json" not in remote_files()


def test_damage_there_is_refused_by_a_pull(source: Path, tmp_path: Path) -> None:
    push(source, "memory://bucket/cache", policy=QUICK)
    damage(SHARD)
    with pytest.raises(TransferError, match=rf"bucket/cache/{SHARD}: its bytes .* damaged"):
        pull("memory://bucket/cache", tmp_path / "back", policy=QUICK)
    left = snapshot(tmp_path / "back")
    assert SHARD not in left
    assert COMMIT not in left
    assert "manifest.json" not in left


def test_a_record_without_its_shard(source: Path, tmp_path: Path) -> None:
    push(source, "memory://bucket/cache", policy=QUICK)
    MemoryFileSystem().rm(f"/bucket/cache/{SHARD}")
    with pytest.raises(TransferError, match=rf"{SHARD}: not found"):
        pull("memory://bucket/cache", tmp_path / "back", policy=QUICK)
    pushed = push(source, "memory://bucket/cache", policy=QUICK)
    assert remote_files() == snapshot(source)
    assert pushed.num_copied_files == 2
    pull("memory://bucket/cache", tmp_path / "back", policy=QUICK)
    assert snapshot(tmp_path / "back") == snapshot(source)


@pytest.mark.parametrize(("damaged", "error"), [("flipped", HashMismatchError), ("missing", MissingFileError)])
def test_local_damage_is_not_pushed(source: Path, damaged: str, error: type[Exception]) -> None:
    content = bytearray((source / SHARD).read_bytes())
    content[50] ^= 1
    (source / SHARD).unlink() if damaged == "missing" else (source / SHARD).write_bytes(content)
    with pytest.raises(error, match=SHARD):
        push(source, "memory://bucket/cache", policy=QUICK)
    assert not {SHARD, COMMIT, "manifest.json"} & remote_files().keys()
