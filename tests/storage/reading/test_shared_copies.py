"""Processes of one machine that read the same remote cache fetch each shard once between them."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from storage import open_cache
from storage.reading import shared_copies
from storage.reading.cache import Cache
from storage.reading.remote_cache import LocalCopy
from storage.reading.shared_copies import SharedCopies
from storage.remote.directory import RemoteDirectory
from tests.other_users import give_away, without_rights
from tests.places import ROOT

pytest.importorskip("fsspec")

NUM_SHARDS = 6


@pytest.fixture
def origin(tmp_path: Path, make: SimpleNamespace) -> Path:
    return make.cache(tmp_path / "origin", {"samples": {"train": [8] * NUM_SHARDS}})


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of shards, as they are downloaded."""
    paths: list[str] = []
    original = RemoteDirectory.download

    def download(remote: RemoteDirectory, path: str, *args: Any, **settings: Any) -> None:
        original(remote, path, *args, **settings)
        if path.endswith(".arrow"):
            paths.append(path)

    monkeypatch.setattr(RemoteDirectory, "download", download)
    return paths


def opened(origin: Path, tmp_path: Path) -> Cache:
    return open_cache(f"file://{origin}", local_copy=LocalCopy(directory=tmp_path / "local", max_bytes=1 << 30))


def rows_of(cache: Cache) -> list[int]:
    return [row for batch in cache.record_batches("samples", "train") for row in batch.column("row_id").to_pylist()]


def copies(cache: Cache) -> list[Path]:
    return [cache.path / shard.path for shard in cache.manifest.shards]


def test_what_one_has_the_other_takes_over(origin: Path, tmp_path: Path, fetched: list[str]) -> None:
    first, second = opened(origin, tmp_path), opened(origin, tmp_path)
    assert rows_of(first) == rows_of(second) == rows_of(open_cache(origin))
    assert sorted(fetched) == sorted(shard.path for shard in first.manifest.shards)
    for one, other in zip(copies(first), copies(second), strict=True):
        assert one != other
        assert one.samefile(other), "no more bytes on the disk"


@pytest.mark.parametrize(("mode", "times"), [(0o755, 1), (0o700, 2)])
def test_what_another_user_lets_this_one_read_is_copied(
    origin: Path, tmp_path: Path, fetched: list[str], mode: int, times: int
) -> None:
    first = opened(origin, tmp_path)
    rows = rows_of(first)
    for path in (tmp_path / "local").iterdir():
        give_away(path, mode)
    with without_rights():
        second = opened(origin, tmp_path)
        assert rows_of(second) == rows
    assert Counter(fetched) == {shard.path: times for shard in first.manifest.shards}
    assert all(path.stat().st_uid == os.getuid() for path in copies(second))


def test_what_has_left_there_stays_here(origin: Path, tmp_path: Path, fetched: list[str]) -> None:
    first, second = opened(origin, tmp_path), opened(origin, tmp_path)
    rows = rows_of(first)
    assert rows_of(second) == rows
    for copy in copies(first):
        copy.unlink()
    assert rows_of(second) == rows
    third = opened(origin, tmp_path)
    assert rows_of(third) == rows
    assert len(fetched) == NUM_SHARDS
    assert all(map(Path.samefile, copies(second), copies(third)))


@pytest.mark.parametrize("failure", ["no lock file", "lockf", "unlock", "stat", "link"])
def test_what_fails_costs_a_download_and_nothing_else(
    origin: Path, tmp_path: Path, fetched: list[str], monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    first = opened(origin, tmp_path)
    rows = rows_of(first)
    lockf = fcntl.lockf

    def refuse(*args: object) -> Any:
        raise OSError(errno.EACCES if failure == "lockf" else errno.ESTALE, "refused")

    match failure:
        case "no lock file":
            (lock_file,) = (tmp_path / "local").glob("*.lock")
            lock_file.unlink()
            lock_file.mkdir()
        case "lockf":
            monkeypatch.setattr(fcntl, "lockf", refuse)
        case "unlock":
            monkeypatch.setattr(
                fcntl, "lockf", lambda f, how, *a: (refuse if how == fcntl.LOCK_UN else lockf)(f, how, *a)
            )
        case "stat":
            monkeypatch.setattr(shared_copies, "is_held", refuse)
        case "link":
            monkeypatch.setattr(shared_copies, "link_or_copy", refuse)
    began = time.monotonic()
    assert rows_of(opened(origin, tmp_path)) == rows
    assert time.monotonic() - began < shared_copies._LONGEST_WAIT_S / 10
    assert len(fetched) == (2 if failure in ("stat", "link") else 1) * NUM_SHARDS


def test_a_damaged_copy_is_not_taken_over(origin: Path, tmp_path: Path, fetched: list[str]) -> None:
    first, second = opened(origin, tmp_path), opened(origin, tmp_path)
    rows = rows_of(first)
    damaged = copies(first)[2]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert rows_of(second) == rows
    assert Counter(fetched)[first.manifest.shards[2].path] == 2
    assert len(fetched) == NUM_SHARDS + 1
    assert not copies(second)[2].samefile(damaged)


def test_processes_at_the_same_time_fetch_each_shard_once(origin: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from storage import RowStream, open_cache\n"
        "from storage.remote.directory import RemoteDirectory\n"
        "from storage.reading.remote_cache import LocalCopy\n"
        "original = RemoteDirectory.download\n"
        "def download(remote, path, *args, **settings):\n"
        "    time.sleep(0.2)\n"
        "    with open(sys.argv[3], 'a') as log: log.write(path + '\\n')\n"
        "    original(remote, path, *args, **settings)\n"
        "RemoteDirectory.download = download\n"
        "local = LocalCopy(directory=Path(sys.argv[2]), max_bytes=1 << 30)\n"
        "cache = open_cache(sys.argv[1], local_copy=local)\n"
        "print('open', flush=True)\n"
        "sys.stdin.readline()\n"
        "batches = RowStream(cache, 'samples', 'train', batch_rows=8, seed=1).batches()\n"
        f"print([next(batches).rows.column('row_id').to_pylist() for _ in range({NUM_SHARDS})])\n"
    )
    log = tmp_path / "log"
    command = [sys.executable, "-c", code, f"file://{origin}", str(tmp_path / "local"), str(log)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]  # type: ignore[call-overload]
    try:
        assert [process.stdout.readline() for process in processes] == ["open\n"] * 3
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert len(set(answers)) == 1
    assert answers[0].startswith("[[")
    found = Counter(path for path in log.read_text().splitlines() if path.endswith(".arrow"))
    assert found == Counter(shard.path for shard in open_cache(origin).manifest.shards)


@pytest.fixture
def shared(origin: Path, tmp_path: Path) -> SharedCopies:
    (tmp_path / "name-0").mkdir()
    return SharedCopies(tmp_path / "name-0", tmp_path, "name", open_cache(origin).manifest.shards)


@pytest.fixture
def holder(origin: Path, tmp_path: Path, shared: SharedCopies) -> Any:
    """A process that is at fetching the first shard, for good."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from storage import open_cache\n"
        "from storage.reading.shared_copies import SharedCopies\n"
        "shards = open_cache(sys.argv[1]).manifest.shards\n"
        "with SharedCopies(Path(sys.argv[2], 'name-1'), Path(sys.argv[2]), 'name', shards).turn(shards[0]):\n"
        "    print('at it', flush=True)\n"
        "    time.sleep(100)\n"
    )
    command = [sys.executable, "-c", code, str(origin), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at it\n"
        yield process
        process.kill()


def test_who_was_killed_holds_nobody_up(
    origin: Path, shared: SharedCopies, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            holder.kill()
            holder.wait()

    monkeypatch.setattr(shared_copies.time, "sleep", sleep)
    first, second, *_ = open_cache(origin).manifest.shards
    with shared.turn(second):
        assert not waits, "another shard is another turn"
    with shared.turn(first):
        assert len(waits) >= 3


def test_nobody_waits_for_ever(
    origin: Path, shared: SharedCopies, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_copies, "_LONGEST_WAIT_S", 0.3)
    first = open_cache(origin).manifest.shards[0]
    began = time.monotonic()
    with shared.turn(first):
        assert time.monotonic() - began >= 0.3
    assert holder.poll() is None


def test_without_locks_nobody_waits(origin: Path, shared: SharedCopies, monkeypatch: pytest.MonkeyPatch) -> None:
    def lockf(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with shared.turn(open_cache(origin).manifest.shards[0]):
        pass
