"""Any number of processes, and a URL, find what one process finds in a directory, in the same order and words."""

from __future__ import annotations

import dataclasses
import errno
import functools
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from storage import open_cache, verify_cache
from storage.errors import (
    CacheError,
    ConfigError,
    HashMismatchError,
    MissingFileError,
    UncheckedFileError,
    UnfinishedRemoteError,
    UnreadableFileError,
    WriteRefusedError,
)
from storage.reading import places, proofs, verification
from storage.reading.proofs import Proofs
from storage.reading.verification import num_jobs
from storage.remote.directory import RemoteDirectory
from storage.remote.retrying import RetryPolicy
from tests.storage.in_processes import LOST, Deadly
from tests.storage.object_store import FileServer

IMPATIENT = RetryPolicy(deadline_s=0.05, first_wait_s=0.001, longest_wait_s=0.01)
SHARDS = [f"soft_targets/train-0000{i}-of-00003.arrow" for i in range(3)]
WRONG_ROWS = "samples/train-00000-of-00002.arrow"
JUNK = "beams/validation-00000-of-00001.arrow"
COMMIT = "commits/soft_targets-train-00001.json"


@pytest.fixture
def damaged(small_cache: Path, forge: SimpleNamespace) -> Path:
    """A cache with every damage at once: to records, files, shards, rows and counts, and with a stray file."""
    forge.shard_record(small_cache, "beams/train-00000-of-00001.arrow", num_targets=1)
    (small_cache / JUNK).write_bytes(b"junk" * 200)
    forge.accept_shard(small_cache, JUNK)
    with pa.ipc.open_file(small_cache / WRONG_ROWS) as reader:
        batch, *others = (reader.get_batch(i) for i in range(reader.num_record_batches))
        wrong = forge.column(batch, "row_id", lambda row_ids: row_ids.reverse())
        forge.replace_shard(small_cache, WRONG_ROWS, reader.schema, [wrong, *others])
    (small_cache / SHARDS[0]).unlink()
    (small_cache / SHARDS[1]).write_bytes((small_cache / SHARDS[1]).read_bytes()[:-1])
    flipped = bytearray((small_cache / SHARDS[2]).read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (small_cache / SHARDS[2]).write_bytes(flipped)
    (small_cache / "README.md").write_text("other")
    (small_cache / "plan.json").unlink()
    (small_cache / COMMIT).unlink()
    (small_cache / "samples" / "stray").touch()
    return small_cache


@pytest.fixture
def empty_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Directories for temporary files and for copies, which also other processes take."""
    found = [tmp_path / "temporary", tmp_path / "copies"]
    for directory, variable in zip(found, ("TMPDIR", "XDG_CACHE_HOME"), strict=True):
        directory.mkdir()
        monkeypatch.setenv(variable, str(directory))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return found


@pytest.fixture
def server(small_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Serves the small cache to a client that gives up soon."""
    monkeypatch.setattr(places, "RemoteDirectory", functools.partial(RemoteDirectory, policy=IMPATIENT))
    made = FileServer(small_cache)
    yield made
    made.stop()


def test_jobs_and_urls_find_the_same_in_the_same_order(
    damaged: Path, empty_places: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, progress = verify_cache(damaged), []
    lines = [str(problem) for problem in alone.problems]
    assert [type(problem).__name__ for problem in alone.problems] == [
        "MissingFileError",
        "RecordError",
        "HashMismatchError",
        "MissingFileError",
        "HashMismatchError",
        "HashMismatchError",
        "RowError",
        "RowError",
        "ShardFormatError",
        "UnlistedFileError",
    ]
    for where, jobs in ((str(damaged), 3), (f"file://{damaged}", 2)):
        progress.append(0)
        found = verify_cache(where, lambda num_bytes: progress.append(progress.pop() + num_bytes), jobs=jobs)
        assert [str(problem).replace(where, str(damaged)) for problem in found.problems] == lines
        assert (found.num_shards, found.num_rows, found.num_bytes) == (8, alone.num_rows, alone.num_bytes)
    manifest = open_cache(damaged).manifest
    assert progress == [sum(record.num_bytes for record in [*manifest.files, *manifest.shards])] * 2
    kept = [path for directory in empty_places for path in directory.rglob("*") if path.is_file()]
    assert {path.name for path in kept} == {f"checked-rows-{os.getuid()}"}, "nothing of the cache is kept"
    monkeypatch.setattr(proofs, "notes_path", lambda: kept[0])
    noted = {record.path for record in manifest.shards if Proofs().holds(manifest.identity, record)}
    named = {path for path in (record.path for record in manifest.shards) if any(path in line for line in lines)}
    assert noted == {record.path for record in manifest.shards} - named


def test_a_killed_process_is_a_line_that_names_the_shard(small_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small_cache / SHARDS[2]).unlink()
    monkeypatch.setattr(verification, "_start_checker", Deadly)
    killed, missing = verify_cache(small_cache, jobs=2).problems
    assert isinstance(killed, UncheckedFileError)
    assert str(killed).startswith(f"{small_cache / LOST}: not verified: the process that did it ended (signal 9")
    assert isinstance(missing, MissingFileError), "and the others are verified"


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        (403, UnreadableFileError, "403"),
        (404, MissingFileError, "missing"),
        (500, UnreadableFileError, "gave up after 0.05 s"),
    ],
)
def test_what_a_store_does_not_give_is_one_line(
    small_cache: Path, server: FileServer, status: int, error: type[CacheError], said: str
) -> None:
    server.statuses = {SHARDS[1]: status}
    found = verify_cache(server.url)
    (problem,) = found.problems
    assert type(problem) is error
    assert str(problem).startswith(f"{server.url}/{SHARDS[1]}: ")
    assert said in str(problem)
    assert "\n" not in str(problem)
    server.statuses = {"manifest.json": status}
    with pytest.raises(error if status != 404 else UnfinishedRemoteError, match=server.url):
        verify_cache(server.url)


def test_a_url_is_read_once_and_again_where_the_network_failed(small_cache: Path, server: FileServer) -> None:
    assert verify_cache(server.url).problems == ()
    assert verify_cache(server.url).remarks == (
        "files that are no part of the cache were not looked for: its store lists no files",
    )
    assert server.count("GET", ".arrow") == 2 * 8
    server.reset()
    for fault in ("short body", "reset", "flipped bit", "503"):
        server.inject(fault, method="GET", part_of_path=SHARDS[1])
    assert verify_cache(server.url).problems == ()
    assert server.count("GET", SHARDS[1]) == 5
    server.reset()
    content = bytearray((small_cache / SHARDS[1]).read_bytes())
    content[40] ^= 1
    (small_cache / SHARDS[1]).write_bytes(content)
    (problem,) = verify_cache(server.url).problems
    assert isinstance(problem, HashMismatchError)
    assert server.count("GET", SHARDS[1]) == 2, "the same wrong bytes twice"


def test_no_room_for_a_shard_ends_the_verification(small_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, piece: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(places.tempfile, "TemporaryFile", Full)
    with pytest.raises(WriteRefusedError, match="make room"):
        verify_cache(f"file://{small_cache}")


def test_jobs_are_decided_by_cores_bytes_and_shards(small_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = open_cache(small_cache).manifest
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    for shard_bytes, wanted, expected in (
        (10, None, 1),
        (40 << 20, None, 2),
        (1 << 30, None, 6),
        (10, 3, 3),
        (10, 100, 8),
    ):
        shards = tuple(dataclasses.replace(shard, shard_bytes=shard_bytes) for shard in manifest.shards)
        assert num_jobs(dataclasses.replace(manifest, shards=shards), wanted) == expected
    assert num_jobs(dataclasses.replace(manifest, shards=()), None) == 1
    with pytest.raises(ConfigError, match="--jobs 0: expected 1 or more"):
        verify_cache(small_cache, jobs=0)
