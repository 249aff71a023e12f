"""Copies that strangers published: their paths and records are refused before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from storage.errors import (
    CacheError,
    FormatVersionError,
    LinkInTheWayError,
    RecordError,
    TransferError,
    UnsafePathError,
)
from storage.remote import remote_records
from storage.sharing.transfer import pull, push
from tests.storage.sharing.copies import COMMIT, QUICK, SHARD, remote_files
from tests.storage.stopping import snapshot


def publish(source: Path) -> None:
    """Put a directory in memory:// as a stranger would, without a look at it."""
    for name, content in snapshot(source).items():
        MemoryFileSystem().pipe_file(f"/bucket/cache/{name}", content)


UNSAFE_PATHS = (
    "../outside",
    "/tmp/outside",
    "a/../../outside",
    "C:/outside",
    "manifest.json",
    "Manifest.JSON",
    "plan.json",
    COMMIT,
    SHARD,
    "soft_targets/extra.arrow",
    ".work/lock",
    "x/.tmp-file",
)


@pytest.mark.parametrize(
    ("path", "error"), [*((path, UnsafePathError) for path in UNSAFE_PATHS), ("README.md", RecordError)]
)
def test_a_stranger_s_path_is_refused(
    source: Path, tmp_path: Path, forge: SimpleNamespace, path: str, error: type[CacheError]
) -> None:
    forge.record(
        source / "manifest.json", lambda manifest: manifest["files"].append(manifest["files"][0] | {"path": path})
    )
    publish(source)
    if path not in remote_files():
        MemoryFileSystem().pipe_file(f"/bucket/cache/{path}", remote_files()["README.md"])
    with pytest.raises(error, match=r"memory://bucket/cache") as caught:
        pull("memory://bucket/cache", tmp_path / "deep" / "back", policy=QUICK)
    assert caught.type is error
    assert not list(tmp_path.rglob("*outside*"))
    assert "manifest.json" not in snapshot(tmp_path / "deep")


@pytest.mark.parametrize("change", [{"file_bytes": -1}, {"sha256": "0" * 63}, {"sha256": "A" * 64}])
def test_a_stranger_s_malformed_file_record_is_refused(
    source: Path, tmp_path: Path, forge: SimpleNamespace, change: dict[str, object]
) -> None:
    forge.record(source / "manifest.json", lambda manifest: manifest["files"][0].update(change))
    publish(source)
    with pytest.raises(RecordError, match=r"README\.md has a negative size or a malformed sha256"):
        pull("memory://bucket/cache", tmp_path / "back", policy=QUICK)


def test_a_stranger_s_manifest_is_read_strictly(
    source: Path, tmp_path: Path, forge: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (source / "manifest.json").read_bytes()

    def refused(error: type[Exception], said: str) -> None:
        publish(source)
        with pytest.raises(error, match=said):
            pull("memory://bucket/cache", tmp_path / "back", policy=QUICK)
        assert not (tmp_path / "back").exists()

    (source / "manifest.json").write_bytes(content.replace(b"nobody", b"nobodY"))
    refused(RecordError, r"^memory://bucket/cache/manifest\.json: damaged")
    (source / "manifest.json").write_bytes(content)
    forge.record(source / "manifest.json", lambda manifest: manifest.update(format_version=4))
    refused(FormatVersionError, r"^memory://bucket/cache/manifest\.json: format version 4")
    (source / "manifest.json").write_bytes(content)
    monkeypatch.setattr(remote_records, "MAX_RECORD_BYTES", len(content) - 1)
    refused(TransferError, rf"manifest\.json: is {len(content)} bytes, more than")


def test_a_link_in_the_target_is_not_followed(source: Path, tmp_path: Path) -> None:
    push(source, "memory://bucket/cache", policy=QUICK)
    back = Path(shutil.copytree(source, tmp_path / "back"))
    (back / "manifest.json").unlink()
    shutil.move(back / "soft_targets", tmp_path / "aside")
    (back / "soft_targets").symlink_to(tmp_path / "aside")
    (tmp_path / "aside" / Path(SHARD).name).unlink()
    with pytest.raises(LinkInTheWayError):
        pull("memory://bucket/cache", back, policy=QUICK)
    assert not (tmp_path / "aside" / Path(SHARD).name).exists()
