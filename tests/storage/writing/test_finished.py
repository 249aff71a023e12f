"""A finished cache is left as it is, whatever version wrote its card; a damaged one is not finished."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from storage.records.manifest import read_manifest
from storage.remote.retrying import RetryPolicy
from storage.writing.destinations import Destination
from storage.writing.directory_destination import DirectoryDestination
from storage.writing.remote_destination import RemoteDestination
from tests.storage.stopping import snapshot

OLD_CARD = b"as another version wrote it"
SHARD = "soft_targets/train-00001-of-00003.arrow"


@pytest.fixture
def old(small_cache: Path, forge: SimpleNamespace) -> Path:
    """A finished cache with a card that this version would not write."""
    (small_cache / "README.md").write_bytes(OLD_CARD)
    facts = {"file_bytes": len(OLD_CARD), "sha256": hashlib.sha256(OLD_CARD).hexdigest()}
    forge.record(small_cache / "manifest.json", lambda manifest: manifest["files"][0].update(facts))
    return small_cache


class Place:
    """The cache as a destination, and its files."""

    def __init__(self, destination: Destination, files: Callable[[], dict[str, bytes]]) -> None:
        self.destination, self.files = destination, files


@pytest.fixture(params=["directory", "url"])
def place_of(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path], Place]:
    """Takes a cache where it lies, or puts it at a URL."""
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])

    def remote_files() -> dict[str, bytes]:
        return {path.partition("/cache/")[2]: file.getvalue() for path, file in MemoryFileSystem.store.items()}

    def place_of(cache_dir: Path) -> Place:
        if request.param == "directory":
            return Place(DirectoryDestination(cache_dir), lambda: snapshot(cache_dir))
        for name, content in snapshot(cache_dir).items():
            MemoryFileSystem().pipe_file(f"/bucket/cache/{name}", content)
        policy = RetryPolicy(deadline_s=0.5, first_wait_s=0.001, longest_wait_s=0.01)
        return Place(RemoteDestination("memory://bucket/cache", tmp_path / "work", policy), remote_files)

    return place_of


def test_a_finished_cache_keeps_its_card(old: Path, place_of: Callable[[Path], Place]) -> None:
    manifest, place = read_manifest(old), place_of(old)
    before = place.files()
    assert place.destination.finished() == manifest
    assert place.destination.finish(manifest.identity, []) == manifest
    assert place.files() == before


@pytest.mark.parametrize("damaged", ["README.md", "manifest.json"])
def test_a_damaged_file_is_written_again(old: Path, place_of: Callable[[Path], Place], damaged: str) -> None:
    manifest = read_manifest(old)
    content = (old / damaged).read_bytes()
    (old / damaged).write_bytes(b"#" + content[1:])
    place = place_of(old)
    assert place.destination.finished() is None
    assert place.destination.finish(manifest.identity, []).shards == manifest.shards
    assert place.destination.finished() is not None
    assert place.files()["README.md"].startswith(b"---\n{")


@pytest.mark.parametrize("lost", [SHARD, "commits/soft_targets-train-00001.json", "manifest.json", "README.md"])
def test_a_cache_that_lacks_a_file_is_not_finished(old: Path, place_of: Callable[[Path], Place], lost: str) -> None:
    (old / lost).unlink()
    assert place_of(old).destination.finished() is None


def test_where_nothing_is_nothing_is_finished(tmp_path: Path, place_of: Callable[[Path], Place]) -> None:
    (tmp_path / "empty").mkdir()
    assert place_of(tmp_path / "empty").destination.finished() is None
