"""The bounded local copy: proved, least recently used first, never what is in use."""

from __future__ import annotations

import hashlib
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage.errors import HashMismatchError, LocalCacheTooSmallError, TransferError
from storage.reading.shard_files import DirectoryShards, DownloadedShards
from storage.records.identity import ShardRecord

SIZE = 1000


def content_of(index: int) -> bytes:
    return bytes([index % 256]) * SIZE


def record_of(index: int, num_shards: int = 20) -> ShardRecord:
    return ShardRecord(
        path=f"samples/train-{index:05d}-of-{num_shards:05d}.arrow", first_row_id=0, num_rows=1, num_tokens=1,
        num_targets=1, entropy_sum_nats=0.0, label_nll_sum_nats=0.0, shard_bytes=SIZE,
        sha256=hashlib.sha256(content_of(index)).hexdigest(),
    )  # fmt: skip


RECORDS = [record_of(index) for index in range(20)]


class Store:
    """A remote that counts, can be told to fail, and can be held up."""

    def __init__(self) -> None:
        self.fetched: list[int] = []
        self.failing: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()

    def fetch(self, record: ShardRecord, path: Path) -> None:
        assert self.gate.wait(30)
        index = record.key.index
        self.fetched.append(index)
        if index in self.failing:
            raise TransferError(record.path, "no such luck")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content_of(index))


def local_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*.arrow"))


def make(directory: Path, store: Store, num_shards: int) -> DownloadedShards:
    return DownloadedShards(directory, num_shards * SIZE, RECORDS, store.fetch)


def test_a_copy_is_fetched_once_and_the_least_recently_used_leaves_first(tmp_path: Path) -> None:
    store = Store()
    files = make(tmp_path, store, 3)
    for index in (0, 1, 2, 0, 3, 0, 1):  # 3 pushes 1 out, 1 then pushes 2 out
        path = files.acquire(RECORDS[index])
        assert path.read_bytes() == content_of(index)
        files.release(RECORDS[index])
        assert local_bytes(tmp_path) <= 3 * SIZE
    assert store.fetched == [0, 1, 2, 3, 1]
    assert sorted(path.name[6:11] for path in tmp_path.rglob("*.arrow")) == ["00000", "00001", "00003"]


def test_a_copy_in_use_never_leaves(tmp_path: Path) -> None:
    store = Store()
    files = make(tmp_path, store, 2)
    held = files.acquire(RECORDS[0])
    for index in range(1, 10):
        files.acquire(RECORDS[index])
        assert held.read_bytes() == content_of(0)
        files.release(RECORDS[index])
    files.acquire(RECORDS[1])
    with pytest.raises(LocalCacheTooSmallError) as raised:
        files.acquire(RECORDS[2])
    assert (raised.value.max_bytes, raised.value.needed_bytes) == (2 * SIZE, 3 * SIZE)
    files.release(RECORDS[1])
    assert files.acquire(RECORDS[2]).read_bytes() == content_of(2)


def test_prefetching_takes_only_what_has_room_and_is_not_fetched_again(tmp_path: Path) -> None:
    store = Store()
    files = make(tmp_path, store, 3)
    for index in (0, 1):
        files.acquire(RECORDS[index])
    files.prefetch(RECORDS[2:6])
    assert files.acquire(RECORDS[2]).read_bytes() == content_of(2)
    assert store.fetched.count(2) == 1
    assert sorted(store.fetched) == [0, 1, 2]
    assert local_bytes(tmp_path) == 3 * SIZE


def test_what_waits_to_be_fetched_ahead_gives_way_to_what_is_needed(tmp_path: Path) -> None:
    store = Store()
    files = make(tmp_path, store, 8)
    store.gate.clear()
    files.prefetch(RECORDS[:8])  # four are on their way, four wait
    with ThreadPoolExecutor(1) as executor:
        needed = executor.submit(files.acquire, RECORDS[9])
        store.gate.set()
        assert needed.result(30).read_bytes() == content_of(9)
    assert local_bytes(tmp_path) <= 8 * SIZE
    assert len(store.fetched) < 9


def test_a_failure_reaches_whoever_needs_the_shard_and_is_tried_again_next_time(tmp_path: Path) -> None:
    store = Store()
    files = make(tmp_path, store, 3)
    store.failing = {4}
    files.prefetch([RECORDS[4]])
    for _ in range(2):
        with pytest.raises(TransferError):
            files.acquire(RECORDS[4])
    store.failing = set()
    assert files.acquire(RECORDS[4]).read_bytes() == content_of(4)


def test_copies_of_an_earlier_process_are_proved_and_kept_and_count_as_room(tmp_path: Path) -> None:
    store = Store()
    earlier = make(tmp_path, store, 3)
    for index in (0, 1, 2):
        earlier.release((earlier.acquire(RECORDS[index]), RECORDS[index])[1])
    (tmp_path / RECORDS[1].path).write_bytes(content_of(7))
    (tmp_path / "samples" / ".tmp-0123-train").write_bytes(b"left over")
    store.fetched.clear()
    files = make(tmp_path, store, 3)
    assert not list(tmp_path.rglob(".tmp-*"))
    for index in (0, 1, 2):
        assert files.acquire(RECORDS[index]).read_bytes() == content_of(index)
        files.release(RECORDS[index])
    assert store.fetched == [1]
    files.acquire(RECORDS[5])
    assert local_bytes(tmp_path) == 3 * SIZE


def test_many_threads_never_see_a_wrong_or_missing_copy(tmp_path: Path) -> None:
    store = Store()
    files = make(tmp_path, store, 6)

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            record = rng.choice(RECORDS)
            if rng.random() < 0.2:
                files.prefetch(rng.sample(RECORDS, 4))
            path = files.acquire(record)
            assert path.read_bytes() == content_of(record.key.index)
            files.release(record)

    with ThreadPoolExecutor(4) as executor:
        for done in [executor.submit(work, seed) for seed in range(4)]:
            done.result(60)
    assert local_bytes(tmp_path) <= 6 * SIZE


def test_a_directory_proves_a_shard_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / RECORDS[3].path
    path.parent.mkdir()
    path.write_bytes(content_of(3))
    files = DirectoryShards(tmp_path)
    assert files.acquire(RECORDS[3]) == path
    monkeypatch.setattr("storage.reading.shard_files.check_file", lambda *_: pytest.fail("hashed again"))
    assert files.acquire(RECORDS[3]) == path
    monkeypatch.undo()
    path.write_bytes(content_of(4))
    with pytest.raises(HashMismatchError):
        DirectoryShards(tmp_path).acquire(RECORDS[3])
