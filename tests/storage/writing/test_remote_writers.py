"""Several writers of one shard at a URL, whose last bits differ: one whole shard stands, and its own record."""

from __future__ import annotations

import dataclasses
import errno
import functools
import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from storage.records.commits import write_commit
from storage.records.identity import ShardKey, ShardRecord
from storage.remote.directory import RemoteDirectory
from storage.remote.retrying import RetryPolicy
from storage.rows.columns import to_fixed
from storage.shards.shard import Shard, write_shard
from storage.writing.remote_commits import commit_shard, prove_or_remove
from storage.writing.remote_destination import RemoteDestination
from tests.storage.writing.creating_store import CreatingStore, Writers, every_state

KEY = ShardKey(kind="soft_targets", split="train", index=0, num_shards=1)
URL = "gs://bucket/cache"
SHARD, COMMIT = f"bucket/cache/{KEY.path}", f"bucket/cache/{KEY.commit_path}"
QUICK = RetryPolicy(deadline_s=20, first_wait_s=0.001, longest_wait_s=0.01)


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(importlib.import_module("fsspec.registry")._registry, "gs", CreatingStore)
    monkeypatch.setattr(CreatingStore, "files", {})
    if Path("/dev/shm").is_dir():  # thousands of small files
        monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")


@dataclasses.dataclass(frozen=True)
class Bits:
    """One writer's shard: the same rows, other last bits, the same size as those of the others."""

    staging: Path
    record: ShardRecord
    shard: bytes
    commit: bytes


@pytest.fixture(scope="module")
def identity(make: SimpleNamespace) -> Any:
    return make.identity()


@pytest.fixture(scope="module")
def bits(make: SimpleNamespace, identity: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Bits]:
    """What three writers have on their disks."""
    batch = make.batch("soft_targets", 4, 0, identity)
    made: dict[int, list[Bits]] = {}
    for value in range(1, 99):
        staging = tmp_path_factory.mktemp("writer")
        record = write_shard(staging, identity, KEY, 0, [with_entropy(batch, value / 64)])
        write_commit(staging, record)
        found = Bits(staging, record, (staging / KEY.path).read_bytes(), (staging / KEY.commit_path).read_bytes())
        same_size = made.setdefault(record.shard_bytes, [])
        same_size.append(found)
        if len(same_size) == 3:
            return same_size
    raise AssertionError("no three shards of one size")


def with_entropy(batch: pa.RecordBatch, value: float) -> pa.RecordBatch:
    entropy = batch.column("entropy").flatten().to_numpy().copy()
    entropy[-1] = value
    index = batch.schema.get_field_index("entropy")
    return batch.set_column(index, batch.schema.field(index), to_fixed(entropy, batch.schema.field("entropy").type))


def remote() -> RemoteDirectory:
    return RemoteDirectory(URL, QUICK, sleep=lambda seconds: None)


def lay(shard: bytes | None, commit: bytes | None) -> None:
    CreatingStore.files.clear()
    CreatingStore.num_puts = 0
    CreatingStore.files.update({p: (c, 0) for p, c in ((SHARD, shard), (COMMIT, commit)) if c is not None})


def content(path: str) -> bytes | None:
    return CreatingStore.files[path][0] if path in CreatingStore.files else None


def verdict(bits: list[Bits]) -> str:
    """Whether the record in the store is that of the shard beside it; "open" when one of them is missing."""
    shard, commit = content(SHARD), content(COMMIT)
    if shard is None or commit is None:
        return "open"
    return "sound" if (shard, commit) in [(b.shard, b.commit) for b in bits] else "mixed up"


def writer(identity: Any, own: Bits, *, removes_record: bool) -> Callable[[], ShardRecord]:
    def write() -> ShardRecord:
        if removes_record:
            remote().remove(KEY.commit_path)
        return commit_shard(remote(), own.staging, identity, own.record)

    return write


def next_run(identity: Any, own: Bits, work_dir: Path) -> None:
    """What a run does that comes later: it reads back what is committed, and makes what is not."""
    destination = RemoteDestination(URL, work_dir, QUICK)
    destination.prove(destination.look_up([KEY]), lambda _: None)
    if destination.read_commit(KEY) is None:
        shard = Shard(own.staging / KEY.path, identity, own.record)
        batches = (shard.read_batch(index) for index in range(shard.num_record_batches))
        destination.stage_shard(identity, KEY, 0, batches)()


@pytest.mark.parametrize(
    ("shard", "commit"),
    [(None, None), (2, None), (None, 2), ("garbage", None)],
    ids=["nothing", "a killed writer's shard", "a lost shard", "half a shard"],
)
def test_wherever_two_writers_and_their_ends_meet_the_record_is_the_shards_own(
    identity: Any, bits: list[Bits], tmp_path: Path, shard: int | str | None, commit: int | None
) -> None:
    """Whichever is killed at whichever step, the next run leaves one whole shard and its own record."""
    first = b"?" * len(bits[0].shard) if shard == "garbage" else None if shard is None else bits[shard].shard
    last = None if commit is None else bits[commit].commit

    def start() -> Writers:
        lay(first, last)
        return Writers([writer(identity, b, removes_record=commit is not None) for b in bits[:2]])

    num_orders, left = 0, set[tuple[bytes | None, bytes | None]]()
    for writers, order in every_state(start, 3 if shard == "garbage" else None):
        assert not writers.errors, order
        num_orders += 1
        if shard != "garbage" or len(writers.alive) < 2:
            assert order == () or verdict(bits) != "mixed up", order
        if not writers.alive:
            assert verdict(bits) == "sound", order
        left.add((content(SHARD), content(COMMIT)))
    for state in left:
        lay(*state)
        next_run(identity, bits[2], tmp_path / str(len(list(tmp_path.iterdir()))))
        assert verdict(bits) == "sound", state
    assert num_orders > 50


def test_two_runs_that_repair_what_an_older_version_left_agree(identity: Any, bits: list[Bits]) -> None:
    """The shard is whole, and its record is of other bytes and of the same size."""

    def repair(own: Bits) -> None:
        if not prove_or_remove(remote(), bits[2].record):
            commit_shard(remote(), own.staging, identity, own.record)

    def start() -> Writers:
        lay(bits[0].shard, bits[2].commit)
        return Writers([functools.partial(repair, own) for own in bits[:2]])

    for writers, order in every_state(start, most_switches=2):
        assert not writers.errors, order
        if len(writers.alive) < 2:
            assert verdict(bits) != "mixed up", order
        if not writers.alive:
            assert verdict(bits) == "sound", order


@pytest.mark.parametrize("damage", ["other bytes", "half a shard", "a flipped bit"])
def test_a_rerun_repairs_a_shard_whose_record_has_another_sha256(
    identity: Any, bits: list[Bits], tmp_path: Path, damage: str
) -> None:
    shard = {"other bytes": bits[0].shard, "half a shard": b"?" * len(bits[0].shard)}.get(damage)
    flipped = bytearray(bits[1].shard)
    flipped[100] ^= 1
    lay(shard or bytes(flipped), bits[1].commit)
    next_run(identity, bits[2], tmp_path / "work")
    assert (content(SHARD), content(COMMIT)) == (bits[2].shard, bits[2].commit)


def test_what_a_machine_has_read_back_once_it_reads_no_more(identity: Any, bits: list[Bits], tmp_path: Path) -> None:
    lay(bits[0].shard, bits[0].commit)
    opened = [RemoteDestination(URL, tmp_path / name, QUICK) for name in ("here", "here", "elsewhere", "here")]
    assert opened[0].look_up([KEY]) == [KEY]
    assert opened[0].prove([KEY], lambda _: None) == []
    assert [destination.look_up([KEY]) for destination in opened[1:3]] == [[], [KEY]]
    lay(bits[1].shard, bits[1].commit)
    assert opened[3].look_up([KEY]) == [KEY], "another shard is there now"
    assert CreatingStore.num_puts == 0, "nothing was put where all is well"


class OtherStore(CreatingStore):
    """A store that answers a second put in its own way."""

    protocol = ("s3", "az")
    answer: OSError | None = None

    def put_file(self, lpath: str, rpath: str, mode: str = "overwrite", **_: Any) -> None:
        if mode == "create" and rpath in self.files and self.answer:
            raise self.answer
        super().put_file(lpath, rpath, "overwrite")


def refused(code: str, number: int) -> OSError:
    """As s3fs translates what a server answers."""
    error = OSError(number, "refused")
    error.__cause__ = type("ClientError", (Exception,), {"response": {"Error": {"Code": code}}})()
    return error


@pytest.mark.parametrize(
    ("protocol", "answer", "creates"),
    [
        ("az", FileExistsError("File already exists!"), True),
        ("s3", refused("PreconditionFailed", errno.EINVAL), True),
        ("s3", refused("412", errno.EINVAL), True),
        ("s3", refused("NotImplemented", errno.ENOSYS), False),
        ("s3", None, False),
    ],
    ids=["Azure", "S3, no condition named", "S3, a status alone", "not implemented", "not heeded"],
)
def test_how_stores_refuse_a_second_put_and_what_is_said_of_those_that_do_not(
    identity: Any, bits: list[Bits], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    protocol: str, answer: OSError | None, creates: bool,
) -> None:  # fmt: skip
    monkeypatch.setitem(importlib.import_module("fsspec.registry")._registry, protocol, OtherStore)
    monkeypatch.setattr(OtherStore, "answer", answer)
    monkeypatch.setattr(OtherStore, "files", {})
    url = f"{protocol}://bucket/cache"
    first, second = (RemoteDestination(url, tmp_path / name, QUICK) for name in ("first", "second"))
    first.begin_or_resume(identity)
    commits = []
    for destination, own in zip((first, second), bits, strict=False):
        shard = Shard(own.staging / KEY.path, identity, own.record)
        commits.append(destination.stage_shard(identity, KEY, 0, iter([shard.read_batch(0)])))
    for commit in commits:
        commit()
    found = RemoteDestination(url, tmp_path / "third", QUICK).read_commit(KEY)
    assert found == bits[0].record
    line = f"{url}: this store replaces files; whoever writes to it must agree on every byte of a shard\n"
    assert capfd.readouterr().err.count(line) == (0 if creates else 1)
    directory = RemoteDirectory(url, QUICK)
    directory.create(bits[1].staging / KEY.path, KEY.path)
    assert OtherStore.files[f"bucket/cache/{KEY.path}"][0] == (bits[0] if creates else bits[1]).shard
