"""A cache that is made at a URL, shard by shard, holds the bytes of one made in a directory."""

from __future__ import annotations

import dataclasses
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from storage import Cache, open_cache
from storage.errors import (
    CacheMismatchError,
    ConfigError,
    IncompleteCacheError,
    MissingFileError,
    StoppedError,
    TransferError,
    WriteRefusedError,
)
from storage.records.identity import ShardKey, ShardRecord
from storage.remote import crew
from storage.remote.retrying import RetryPolicy
from storage.remote.stores import FileSystem
from storage.writing.destinations import open_destination
from storage.writing.directory_destination import DirectoryDestination
from storage.writing.remote_destination import RemoteDestination
from tests.failing_thread import start_failing
from tests.other_users import give_away, without_rights
from tests.storage.object_store import FAULTS, FakeHub, S3Proxy

QUICK = RetryPolicy(deadline_s=20, first_wait_s=0.001, longest_wait_s=0.01)
IMPATIENT = RetryPolicy(deadline_s=0.05, first_wait_s=0.001, longest_wait_s=0.01)
URL = "memory://bucket/cache"
TOKENIZER = ("tokenizer/tokenizer.json", b'{"its": "words"}')

Open = Callable[..., RemoteDestination]


@pytest.fixture(autouse=True)
def _empty_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])


@pytest.fixture(scope="module")
def source(make: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """The rows that are to be published."""
    return open_cache(make.cache(tmp_path_factory.mktemp("source") / "cache"))


@pytest.fixture(scope="module")
def expected(source: Cache, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What publishing them in a directory leaves."""
    out = tmp_path_factory.mktemp("expected") / "cache"
    publish(source, DirectoryDestination(out))
    return files(out)


@pytest.fixture
def at_url(tmp_path: Path) -> Open:
    """Opens the destination anew, as another process would."""

    def open_(url: str = URL, policy: RetryPolicy = QUICK) -> RemoteDestination:
        return RemoteDestination(url, tmp_path / "work", policy)

    return open_


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def remote_files() -> dict[str, bytes]:
    return {path.partition("/cache/")[2]: file.getvalue() for path, file in MemoryFileSystem.store.items()}


def batches_of(source: Cache, record: ShardRecord) -> Iterator[pa.RecordBatch]:
    shard = source.open_shard(record)
    for index in range(shard.num_record_batches):
        yield shard.read_batch(index)
    source.close_shard(shard)


def add(source: Cache, destination: RemoteDestination | DirectoryDestination, record: ShardRecord) -> None:
    destination.stage_shard(source.identity, record.key, record.first_row_id, batches_of(source, record))()


def publish(source: Cache, destination: RemoteDestination | DirectoryDestination, num_shards: int = 99) -> None:
    """What a run does, up to a number of new shards; it finishes when there is nothing left to do."""
    destination.require_own()
    identity = destination.begin_or_resume(source.identity)
    destination.add_file(*TOKENIZER)
    destination.look_up([record.key for record in source.manifest.shards])
    missing = [record for record in source.manifest.shards if destination.read_commit(record.key) is None]
    for record in missing[:num_shards]:
        add(source, destination, record)
    if len(missing) <= num_shards:
        manifest = destination.finish(identity, [TOKENIZER[0]])
        assert manifest.shards == source.manifest.shards


def keys_of(source: Cache) -> list[ShardKey]:
    return [record.key for record in source.manifest.shards]


def test_the_bytes_are_those_of_a_directory(source: Cache, at_url: Open, expected: dict[str, bytes]) -> None:
    publish(source, at_url())
    assert remote_files() == expected


def test_a_stopped_run_goes_on_where_it_stopped(source: Cache, at_url: Open, expected: dict[str, bytes]) -> None:
    publish(source, at_url(), num_shards=2)
    assert "manifest.json" not in remote_files()
    before = dict(MemoryFileSystem.store)
    again = at_url()
    again.look_up(keys_of(source))
    assert [again.read_commit(record.key) for record in source.manifest.shards[:3]] == [
        *source.manifest.shards[:2],
        None,
    ]
    publish(source, again)
    assert remote_files() == expected
    assert all(MemoryFileSystem.store[name] is file for name, file in before.items()), "nothing is put twice"


def test_a_finished_cache_is_left_as_it_is(source: Cache, at_url: Open) -> None:
    publish(source, at_url())
    before = dict(MemoryFileSystem.store)
    assert at_url().finished() is not None
    publish(source, at_url())
    assert before == MemoryFileSystem.store
    assert all(before[name] is file for name, file in MemoryFileSystem.store.items())


def test_committed_shards_that_are_lost_or_cut_are_sent_again(
    source: Cache, at_url: Open, expected: dict[str, bytes]
) -> None:
    publish(source, at_url())
    memory = fsspec.filesystem("memory")
    lost, cut, *_ = (record.path for record in source.manifest.shards)
    memory.rm(f"{URL}/{lost}")
    memory.pipe(f"{URL}/{cut}", expected[cut][:-1])
    assert remote_files() != expected
    publish(source, at_url())
    assert remote_files() == expected


def test_a_lost_shard_of_other_bytes_never_stands_beside_the_old_record(
    source: Cache, at_url: Open, make: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that differs in the last bits makes it anew and is killed between the two files."""
    publish(source, at_url())
    other = open_cache(make.cache(tmp_path / "other", seed=1))
    record, others_record = source.manifest.shards[0], other.manifest.shards[0]
    fsspec.filesystem("memory").rm(f"{URL}/{record.path}")
    original, calls = FileSystem.put, iter([True])

    def put(self: FileSystem, files: Any) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        original(self, files)

    with monkeypatch.context() as patch:
        patch.setattr(FileSystem, "put", put)
        first = at_url()
        assert first.read_commit(record.key) is None
        with pytest.raises(KeyboardInterrupt):
            add(other, first, others_record)
    assert at_url().read_commit(record.key) is None
    second = at_url()
    assert second.read_commit(record.key) is None
    add(source, second, record)
    assert at_url().read_commit(record.key) == record
    assert remote_files()[record.path] == (source.path / record.path).read_bytes()


def test_the_first_commit_record_stands(source: Cache, at_url: Open, make: SimpleNamespace, tmp_path: Path) -> None:
    """Two machines that disagree in the last bits are at one shard: whoever is later drops what it made."""
    other = open_cache(make.cache(tmp_path / "other", seed=1))
    record, others_record = source.manifest.shards[0], other.manifest.shards[0]
    assert record.sha256 != others_record.sha256
    first, second = at_url(), at_url()
    first.begin_or_resume(source.identity)
    assert second.read_commit(record.key) is None
    add(source, first, record)
    add(other, second, others_record)
    for seen in (first, second, at_url()):
        assert seen.read_commit(record.key) == record
    assert remote_files()[record.path] == (source.path / record.path).read_bytes()


def test_a_shard_is_committed_only_when_it_is_there(
    source: Cache, at_url: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between a shard and its record, a run leaves no record; the next puts what is missing."""
    put_file = MemoryFileSystem.put_file

    def killed(self: MemoryFileSystem, local: str, path: str, **settings: object) -> None:
        if "/commits/" in path:
            raise KeyboardInterrupt
        put_file(self, local, path, **settings)

    record = source.manifest.shards[0]
    with monkeypatch.context() as patched:
        patched.setattr(MemoryFileSystem, "put_file", killed)
        with pytest.raises(KeyboardInterrupt):
            add(source, at_url(), record)
    assert list(remote_files()) == [record.path]
    assert at_url().read_commit(record.key) is None
    add(source, at_url(), record)
    assert at_url().read_commit(record.key) == record


def test_what_arrives_damaged_is_sent_again(
    source: Cache, at_url: Open, monkeypatch: pytest.MonkeyPatch, expected: dict[str, bytes]
) -> None:
    put_file, seen = MemoryFileSystem.put_file, set()

    def spoil_first(self: MemoryFileSystem, local: str, path: str, **settings: object) -> None:
        put_file(self, local, path, **settings)
        if path not in seen:
            seen.add(path)
            content = bytearray(Path(local).read_bytes())
            content[len(content) // 2] ^= 1
            self.pipe_file(path, bytes(content))

    monkeypatch.setattr(MemoryFileSystem, "put_file", spoil_first)
    publish(source, at_url())
    assert remote_files() == expected


def test_another_cache_there_is_refused_and_kept(source: Cache, at_url: Open) -> None:
    publish(source, at_url(), num_shards=1)
    before = remote_files()
    other = dataclasses.replace(source.identity, teacher=source.identity.teacher | {"id": "somebody"})
    with pytest.raises(CacheMismatchError, match=r"^memory://bucket/cache.*teacher\.id") as caught:
        at_url().begin_or_resume(other)
    assert caught.value.field == "teacher.id"
    assert remote_files() == before


def test_of_two_caches_begun_at_the_same_time_one_stands(source: Cache, at_url: Open) -> None:
    """Both saw an empty place; whose plan came first does not mix its shards with those of the other."""
    other = dataclasses.replace(source.identity, teacher=source.identity.teacher | {"id": "somebody"})
    first, second = at_url(), at_url()
    first.begin_or_resume(source.identity)
    MemoryFileSystem().rm("/bucket/cache/plan.json")
    second.begin_or_resume(other)
    for act in (lambda: add(source, first, source.manifest.shards[0]), lambda: first.finish(source.identity, [])):
        with pytest.raises(CacheMismatchError, match=r"teacher\.id"):
            act()
    assert list(remote_files()) == ["plan.json"]


def test_a_manifest_lists_the_commit_records_that_stand(
    source: Cache, at_url: Open, make: SimpleNamespace, tmp_path: Path
) -> None:
    """Two machines that disagree in the last bits sent one shard at the same time; either may finish."""
    other = open_cache(make.cache(tmp_path / "other", seed=1))
    record, others_record = source.manifest.shards[0], other.manifest.shards[0]
    first = at_url()
    publish(source, first, num_shards=98)
    MemoryFileSystem().rm(f"/bucket/cache/{record.key.commit_path}")
    first = at_url()
    first.look_up(keys_of(source))
    add(source, first, record)
    MemoryFileSystem().rm(f"/bucket/cache/{record.key.commit_path}")  # the other looked before it was there
    at_url().stage_shard(source.identity, record.key, record.first_row_id, batches_of(other, others_record))()
    assert first.finish(source.identity, [TOKENIZER[0]]).shards[0] == others_record


def test_other_software_may_finish_a_cache(source: Cache, at_url: Open, expected: dict[str, bytes]) -> None:
    publish(source, at_url(), num_shards=3)
    later = dataclasses.replace(source.identity, software={"teachonce": "0.2.0"})
    destination = at_url()
    assert destination.begin_or_resume(later) == source.identity
    for record in source.manifest.shards[3:]:
        add(source, destination, record)
    destination.finish(later, [TOKENIZER[0]])
    assert remote_files() == expected


def test_a_cache_is_not_finished_before_its_last_shard(source: Cache, at_url: Open) -> None:
    publish(source, at_url(), num_shards=2)
    with pytest.raises(IncompleteCacheError, match=r"memory://bucket/cache.*2 of \d+ shards"):
        at_url().finish(source.identity, [TOKENIZER[0]])
    assert "manifest.json" not in remote_files()


def test_a_tokenizer_that_is_not_there_is_missed(source: Cache, at_url: Open) -> None:
    publish(source, at_url(), num_shards=98)
    MemoryFileSystem().rm("/bucket/cache/manifest.json")
    MemoryFileSystem().rm(f"/bucket/cache/{TOKENIZER[0]}")
    with pytest.raises(MissingFileError, match=r"memory://bucket/cache/tokenizer/tokenizer\.json"):
        at_url().finish(source.identity, [TOKENIZER[0]])


@pytest.mark.parametrize("refused", ["write_bytes", "mkdir"])
def test_a_full_temporary_directory_is_no_failure_of_the_network(
    source: Cache, at_url: Open, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    publish(source, at_url(), num_shards=1)

    def refuse(self: Path, *arguments: object, **settings: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    destination = at_url()
    monkeypatch.setattr(Path, refused, refuse)
    with pytest.raises(WriteRefusedError, match="No space left"):
        destination.read_commit(source.manifest.shards[0].key)


@pytest.mark.parametrize("is_done", [True, False])
@pytest.mark.parametrize("is_begun", [True, False])
def test_the_work_directory_of_a_begun_run_stays_until_all_is_done(
    source: Cache, at_url: Open, is_begun: bool, is_done: bool
) -> None:
    """Also when the one that leaves last has not come as far: a driver of workers, or one stopped while it loads."""
    destination = at_url()
    if is_begun:
        destination.begin_or_resume(source.identity)
    destination.work_dir.mkdir(exist_ok=True)
    assert [path.name for path in destination.work_dir.iterdir()] == ["begun"] * is_begun, "nothing on its way stays"
    at_url().clean_up(is_done=is_done)
    assert destination.work_dir.exists() == (is_begun and not is_done)


@pytest.mark.parametrize("fault", FAULTS)
def test_making_a_cache_in_s3_survives(
    source: Cache, at_url: Open, expected: dict[str, bytes], s3: S3Proxy, bucket: str, fault: str
) -> None:
    url = f"s3://{bucket}/deep/cache"
    for method in ("GET", "PUT", "HEAD"):
        for path in ("plan.json", ".arrow", "commits/", "manifest.json"):
            s3.inject(fault, method=method, part_of_path=path)
    publish(source, at_url(url))
    assert s3.faults
    there = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    found = {name.partition("/deep/cache/")[2]: there.cat_file(name) for name in there.find(f"{bucket}/deep/cache")}
    assert found == expected


def test_a_place_that_cannot_be_is_found_before_any_work(at_url: Open, hub: FakeHub, s3: S3Proxy) -> None:
    with pytest.raises(ConfigError, match=r"--out hf://datasets/owner/name: .*teachonce-cache push"):
        at_url("hf://datasets/owner/name")
    with pytest.raises(ConfigError, match="nosuchthing"):
        at_url("nosuchthing://a/b")
    s3.inject("503", times=10**6)
    with pytest.raises(TransferError, match="gave up"):
        at_url("s3://some/cache", policy=IMPATIENT).require_own()


def test_a_writer_that_waits_for_the_network_can_be_hurried(source: Cache, at_url: Open, s3: S3Proxy) -> None:
    patient = RetryPolicy(deadline_s=600, first_wait_s=300, longest_wait_s=300)
    destination, another = (at_url(f"s3://{s3.make_bucket()}/cache", policy=patient) for _ in range(2))
    s3.inject("503", times=10**6)
    writer, failures = start_failing(lambda: add(source, destination, source.manifest.shards[0]))
    until = time.monotonic() + 60
    while not s3.faults and time.monotonic() < until:
        time.sleep(0.01)
    destination.hurry()
    writer.join(60)
    assert not writer.is_alive()
    assert [type(error) for error in failures] == [StoppedError]
    s3.reset()
    another.hurry()
    add(source, another, source.manifest.shards[0])
    assert another.read_commit(source.manifest.shards[0].key) is not None, "what needs no waiting is still done"


@pytest.mark.parametrize("request_", ["info", "put_file", "cat_file"])
def test_a_writer_that_hurries_leaves_a_server_that_is_silent(
    source: Cache, at_url: Open, monkeypatch: pytest.MonkeyPatch, request_: str
) -> None:
    """Whatever was asked of it: libraries wait for minutes."""
    monkeypatch.setattr(crew, "_HURRIED_S", 0.01)
    monkeypatch.setattr(crew, "_GRACE_S", 0.01)
    answer, is_asked, is_over = getattr(MemoryFileSystem, request_), threading.Event(), threading.Event()

    def silent(*arguments: object, **settings: object) -> object:
        is_asked.set()
        is_over.wait(60)
        return answer(*arguments, **settings)

    monkeypatch.setattr(MemoryFileSystem, request_, silent)
    destination = at_url()
    writer, failures = start_failing(lambda: add(source, destination, source.manifest.shards[0]))
    assert is_asked.wait(60)
    destination.hurry()
    writer.join(20)
    is_left = not writer.is_alive()
    is_over.set()
    assert is_left
    assert [type(error) for error in failures] == [StoppedError]


def test_each_url_has_a_work_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one, other, given = (
        open_destination(url, work_dir).work_dir
        for url, work_dir in ((URL, None), (URL + "-2", None), (URL, tmp_path / "mine"))
    )
    assert one != other
    assert open_destination(f"{URL}/").work_dir == one, "the same place in other words"
    assert one.parent == tmp_path / "cache" / "teachonce"
    assert given == tmp_path / "mine" / one.name
    assert isinstance(open_destination(tmp_path / "cache"), DirectoryDestination)


def test_another_user_s_work_directory_is_left_to_that_user(tmp_path: Path) -> None:
    theirs = open_destination(URL, tmp_path).work_dir
    theirs.mkdir()
    give_away(theirs)
    with without_rights():
        ours = open_destination(URL, tmp_path).work_dir
        assert ours == theirs.with_name(f"{theirs.name}-{os.getuid()}")
        assert open_destination(URL, tmp_path).work_dir == ours, "processes of one user divide the work"
    theirs.chmod(0o777)
    with without_rights():
        assert open_destination(URL, tmp_path).work_dir == theirs
