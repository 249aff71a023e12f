"""A cache at a URL reads as the directory does, from a bounded local copy."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import subprocess
import sys
import threading
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from storage import RowStream, open_cache
from storage.errors import (
    ConfigError,
    IncompleteCacheError,
    LocalCacheTooSmallError,
    MissingKindError,
    NoCacheError,
    RecordError,
    TransferError,
    UnfinishedRemoteError,
)
from storage.reading.cache import Cache
from storage.reading.remote_cache import LocalCopy
from storage.reading.shard_files import DownloadedShards
from storage.remote.directory import RemoteDirectory
from tests.other_users import give_away, without_rights
from tests.places import ROOT
from tests.storage.sharing.merges import refusing

pytest.importorskip("fsspec")


@pytest.fixture
def origin(tmp_path: Path, make: SimpleNamespace) -> Path:
    """A cache of samples in twelve shards, three groups."""
    return make.cache(tmp_path / "origin", {"samples": {"train": [8] * 12, "validation": [3]}})


def local(tmp_path: Path, max_bytes: int = 1 << 30) -> LocalCopy:
    return LocalCopy(directory=tmp_path / "local", max_bytes=max_bytes)


def rows_of(cache: Cache, count: int) -> list[list[int]]:
    batches = RowStream(cache, "samples", "train", batch_rows=5, seed=1).batches()
    found = [batch.rows.column("row_id").to_pylist() for batch in islice(batches, count)]
    batches.close()
    return found


def shard_bytes(cache: Cache) -> list[int]:
    return sorted(shard.shard_bytes for shard in cache.manifest.shards_of("samples", "train"))


def arrow_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*.arrow"))


def test_a_url_streams_the_same_rows_as_the_directory(origin: Path, tmp_path: Path) -> None:
    here, there = open_cache(origin), open_cache(f"file://{origin}", local_copy=local(tmp_path))
    assert there.manifest == here.manifest
    assert rows_of(there, 60) == rows_of(here, 60)
    assert [b.to_pylist() for b in there.record_batches("samples", "validation")] == [
        b.to_pylist() for b in here.record_batches("samples", "validation")
    ]
    assert there.manifest.files
    for file in there.manifest.files:
        assert (there.path / file.path).read_bytes() == (here.path / file.path).read_bytes()


def test_the_local_copy_stays_within_its_bytes_over_epochs(
    origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = shard_bytes(open_cache(origin))
    limit = sum(sizes[-4:]) + 2 * sizes[-1]
    most = 0
    original = DownloadedShards._begin

    def begin(files: DownloadedShards, record: Any) -> Any:
        nonlocal most
        most = max(most, sum(copy.record.shard_bytes for copy in files._copies.values()) + record.shard_bytes)
        return original(files, record)

    monkeypatch.setattr(DownloadedShards, "_begin", begin)
    cache = open_cache(f"file://{origin}", local_copy=local(tmp_path, limit))
    assert rows_of(cache, 80) == rows_of(open_cache(origin), 80)
    assert 0 < most <= limit
    assert arrow_bytes(tmp_path / "local") <= limit


def test_too_little_room_is_said_at_once(origin: Path, tmp_path: Path) -> None:
    needed = sum(shard_bytes(open_cache(origin))[-4:])
    with pytest.raises(LocalCacheTooSmallError, match="--local-cache-bytes"):
        open_cache(f"file://{origin}", local_copy=local(tmp_path, needed))


def test_the_next_group_is_on_its_way_before_it_is_needed(
    origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloaded: list[str] = []
    done = threading.Event()
    original = RemoteDirectory.download

    def download(remote: RemoteDirectory, path: str, *args: Any, **settings: Any) -> None:
        original(remote, path, *args, **settings)
        downloaded.append(path)
        if sum(p.startswith("samples/") for p in downloaded) == 8:
            done.set()

    monkeypatch.setattr(RemoteDirectory, "download", download)
    cache = open_cache(f"file://{origin}", local_copy=local(tmp_path))
    batches = RowStream(cache, "samples", "train", batch_rows=1, seed=1).batches()
    next(batches)  # one row of the first group of four shards
    assert done.wait(30)
    batches.close()


def test_shards_are_downloaded_once_and_kept_for_the_next_process(
    origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(open_cache(f"file://{origin}", local_copy=local(tmp_path)), 60)
    code = (
        "import sys; from pathlib import Path; from storage import RowStream, open_cache\n"
        "from storage.reading.remote_cache import LocalCopy\n"
        "from storage.remote.directory import RemoteDirectory\n"
        "RemoteDirectory.download = None\n"
        "local = LocalCopy(directory=Path(sys.argv[2]), max_bytes=1 << 30)\n"
        "cache = open_cache(sys.argv[1], local_copy=local)\n"
        "batches = RowStream(cache, 'samples', 'train', batch_rows=5, seed=1).batches()\n"
        "print([next(batches).rows.column('row_id').to_pylist() for _ in range(60)])\n"
    )
    command = [sys.executable, "-c", code, f"file://{origin}", str(tmp_path / "local")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.strip() == str(rows), done.stderr


def test_two_users_at_once_do_not_share_a_directory(origin: Path, tmp_path: Path) -> None:
    first = open_cache(f"file://{origin}", local_copy=local(tmp_path))
    second = open_cache(f"file://{origin}", local_copy=local(tmp_path))
    assert first.path != second.path
    assert rows_of(first, 10) == rows_of(second, 10)


def test_a_damaged_remote_shard_is_refused(origin: Path, tmp_path: Path) -> None:
    for shard in (origin / "samples").glob("train-*"):
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 4
        shard.write_bytes(content)
    cache = open_cache(f"file://{origin}", local_copy=local(tmp_path))
    with pytest.raises(TransferError, match="sha256"):
        rows_of(cache, 1)
    assert arrow_bytes(tmp_path / "local") == 0


def test_what_is_no_cache_is_refused(origin: Path, tmp_path: Path) -> None:
    with pytest.raises(NoCacheError):
        open_cache(f"file://{tmp_path}/nothing", local_copy=local(tmp_path))
    with pytest.raises(ConfigError):
        open_cache("nosuchprotocol://bucket/cache", local_copy=local(tmp_path))
    (origin / "manifest.json").rename(origin / "elsewhere.json")
    with pytest.raises(UnfinishedRemoteError, match="run the command that began it again"):
        open_cache(f"file://{origin}", local_copy=local(tmp_path))
    (origin / "elsewhere.json").rename(origin / "manifest.json")
    (origin / "manifest.json").write_bytes((origin / "manifest.json").read_bytes().replace(b'"samples"', b'"simples"'))
    with pytest.raises(RecordError):
        open_cache(f"file://{origin}", local_copy=local(tmp_path))


def test_messages_speak_of_the_url(origin: Path, tmp_path: Path) -> None:
    url = f"file://{origin}"
    with pytest.raises(MissingKindError, match=f"^{url}: "):
        open_cache(url, local_copy=local(tmp_path)).shards("soft_targets", "train")
    content = (origin / "manifest.json").read_bytes()
    (origin / "manifest.json").write_bytes(content[: len(content) // 2])
    with pytest.raises(RecordError, match=f"^{url}/manifest.json: not valid JSON") as caught:
        open_cache(url, local_copy=local(tmp_path))
    assert str(tmp_path / "local") not in str(caught.value)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_local_cache_dir_that_is_none(origin: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=f"^--local-cache-dir {tmp_path / place}: not a directory"):
        open_cache(f"file://{origin}", local_copy=LocalCopy(directory=tmp_path / place, max_bytes=1 << 30))


@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_what_another_user_copied_is_left_to_that_user(origin: Path, tmp_path: Path, mode: int) -> None:
    theirs = open_cache(f"file://{origin}", local_copy=local(tmp_path))
    rows = rows_of(theirs, 60)
    directory = theirs.path
    del theirs
    for path in (tmp_path / "local").iterdir():
        give_away(path, mode)
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    with without_rights():
        ours = open_cache(f"file://{origin}", local_copy=local(tmp_path))
        assert ours.path == directory.with_name(directory.name[:-1] + "1")
        assert rows_of(ours, 60) == rows
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before


def test_a_directory_that_another_user_shares_in_part_is_left_too(origin: Path, tmp_path: Path) -> None:
    theirs = open_cache(f"file://{origin}", local_copy=local(tmp_path))
    directory = theirs.path
    (directory / "samples").mkdir(exist_ok=True)
    del theirs
    give_away(directory, 0o777)
    give_away(directory / "samples", 0o755)
    with without_rights():
        ours = open_cache(f"file://{origin}", local_copy=local(tmp_path))
        assert ours.path != directory
        assert rows_of(ours, 5)


def test_a_shared_directory_is_taken_over_with_its_lock_file_of_another_user(origin: Path, tmp_path: Path) -> None:
    directory = open_cache(f"file://{origin}", local_copy=local(tmp_path)).path
    give_away(directory, 0o777)
    (directory / "lock").chmod(0o444)
    with without_rights():
        ours = open_cache(f"file://{origin}", local_copy=local(tmp_path))
        assert ours.path == directory
        assert open_cache(f"file://{origin}", local_copy=local(tmp_path)).path != directory, "the lock holds"


def test_a_copy_that_cannot_be_read_is_fetched_again(origin: Path, tmp_path: Path) -> None:
    first = open_cache(f"file://{origin}", local_copy=local(tmp_path))
    rows, directory = rows_of(first, 60), first.path
    del first
    for path in [*directory.rglob("*.arrow"), directory / "README.md"]:
        give_away(path, 0o700)
    with without_rights():
        again = open_cache(f"file://{origin}", local_copy=local(tmp_path))
        assert again.path == directory
        assert rows_of(again, 60) == rows


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_local_cache_dir_that_may_not_be_written_is_one_line(
    origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (tmp_path / "local").mkdir()
    give_away(tmp_path / "local", 0o755)
    if code == errno.EROFS:
        monkeypatch.setattr("storage.reading.remote_cache._lock_if_free", refusing(code))
    said = f"^--local-cache-dir {tmp_path}/local: cannot be written \\({os.strerror(code)}\\); name another directory"
    with without_rights(), pytest.raises(ConfigError, match=said):
        open_cache(f"file://{origin}", local_copy=local(tmp_path))


def test_users_who_share_a_cache_directory_have_each_their_own(
    origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    theirs = open_cache(f"file://{origin}")
    assert theirs.path.parent == tmp_path / "shared" / "teachonce"
    give_away(tmp_path / "shared" / "teachonce")
    with without_rights():
        ours = open_cache(f"file://{origin}")
        assert ours.path.parent == tmp_path / "shared" / f"teachonce-{os.getuid()}"
        assert rows_of(ours, 5) == rows_of(open_cache(origin), 5)


def test_an_incomplete_cache_is_read_only_when_asked_for(origin: Path) -> None:
    whole = open_cache(origin)
    (origin / "manifest.json").unlink()
    for index in (1, 5, 11):
        (origin / f"commits/samples-train-{index:05d}.json").unlink()
    with pytest.raises(IncompleteCacheError, match="10 of 13 shards"):
        open_cache(origin)
    part = open_cache(origin, allow_incomplete=True)
    assert (len(part.manifest.shards), part.identity.num_planned_shards) == (10, 13)
    missing = {row for index in (1, 5, 11) for row in range(index * 8, index * 8 + 8)}
    epoch = [row for batch in rows_of(part, 15) for row in batch][: part.num_rows("samples", "train")]
    assert sorted(epoch) == sorted(set(range(96)) - missing)
    assert part.restricted_to([s.path for s in part.manifest.shards]).manifest == part.manifest
    assert dataclasses.replace(part.manifest, shards=whole.manifest.shards).identity == whole.identity


def test_nothing_committed_is_incomplete_even_when_asked_for(origin: Path) -> None:
    (origin / "manifest.json").unlink()
    shutil.rmtree(origin / "commits")
    with pytest.raises(IncompleteCacheError, match="0 of 13 shards"):
        open_cache(origin, allow_incomplete=True)
