"""Several writers of one shard, each perhaps killed on the way: its record and its bytes are of one and the same."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage.disk.directories import remove_leftovers
from storage.disk.files import TEMPORARY_PREFIX, publishing, staged_path, write_file
from storage.errors import CacheError
from storage.records.commits import (
    install_committed,
    read_commit,
    read_held_commit,
    read_plan,
    write_commit,
    write_plan,
)
from storage.records.identity import ShardKey, ShardRecord
from storage.rows.columns import to_fixed
from storage.shards.shard import Shard, check_file, write_shard
from storage.writing.directory_destination import DirectoryDestination

KEY = ShardKey(kind="soft_targets", split="train", index=0, num_shards=1)


@pytest.fixture
def write(make: SimpleNamespace) -> Callable[[Path, int], ShardRecord]:
    """Writes the shard as the writer of this number does: each has other bytes."""
    identity = make.identity()
    batch = make.batch("soft_targets", 4, 0, identity)

    def write(cache_dir: Path, writer: int) -> ShardRecord:
        entropy = batch.column("entropy").flatten().to_numpy().copy()
        entropy[-1] = writer / 8
        changed = to_fixed(entropy, batch.schema.field("entropy").type)
        index = batch.schema.get_field_index("entropy")
        return write_shard(cache_dir, identity, KEY, 0, [batch.set_column(index, batch.schema.field(index), changed)])

    return write


def killed(*args: object, **settings: object) -> None:
    raise KeyboardInterrupt


def commit_and_be_killed(out: Path, record: ShardRecord) -> None:
    """The record is written; a staged shard is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("storage.records.commits.install_committed", killed)
        with pytest.raises(KeyboardInterrupt):
            write_commit(out, record, if_taken="drop")


def orders(num_writers: int) -> Iterator[tuple[int, ...]]:
    """Every order of the steps of writers that take two each."""
    return iter(sorted(set(itertools.permutations(sorted([*range(num_writers)] * 2)))))


@pytest.mark.parametrize("is_kept", [False, True], ids=["no leftover", "a leftover that is no shard"])
@pytest.mark.parametrize("order", [*orders(2), *list(orders(3))[::15]], ids=str)
def test_record_and_bytes_are_one_writers_wherever_others_stop(
    tmp_path: Path, write: Callable[[Path, int], ShardRecord], order: tuple[int, ...], is_kept: bool
) -> None:
    for stop in range(1, len(order) + 1):  # the last to step is killed right after its step
        out = tmp_path / str(stop)
        if is_kept:
            write_file(out / KEY.path, b"half a shard")
        written: dict[int, ShardRecord] = {}
        for writer in order[:stop]:
            if writer in written:
                standing = write_commit(out, written[writer], if_taken="drop")
                check_file(out, standing)
            else:
                written[writer] = write(out, writer)
        found = read_commit(out, KEY)
        record = found or write_commit(out, write(out, 7), if_taken="drop")
        if found is not None:
            assert found in written.values()
        check_file(out, record)
        remove_leftovers(out)
        assert sorted(path.name for path in out.rglob("*") if path.is_file()) == sorted(
            [Path(KEY.path).name, Path(KEY.commit_path).name]
        )


def test_a_writer_killed_between_record_and_name_is_finished_by_the_next(
    tmp_path: Path, write: Callable[[Path, int], ShardRecord]
) -> None:
    write(tmp_path, 0)
    second = write(tmp_path, 1)
    commit_and_be_killed(tmp_path, second)
    assert read_commit(tmp_path, KEY) == second
    with pytest.raises(CacheError):
        check_file(tmp_path, second)
    install_committed(tmp_path, second)
    install_committed(tmp_path, second)
    check_file(tmp_path, second)


@pytest.mark.parametrize("is_there", [False, True], ids=["lost", "cut"])
@pytest.mark.parametrize("bits", [0, 1], ids=["the same bytes", "other bytes"])
def test_a_committed_shard_without_its_file_is_made_again(
    tmp_path: Path, make: SimpleNamespace, write: Callable[[Path, int], ShardRecord], bits: int, is_there: bool
) -> None:
    """Also by a machine whose teacher differs in the last bits."""
    first = write_commit(tmp_path, write(tmp_path, 0))
    shard = tmp_path / KEY.path
    if is_there:
        shard.write_bytes(shard.read_bytes()[:-1])
    else:
        shard.unlink()
    source = tmp_path / "source"
    record = write(source, bits)
    assert (record == first) is (bits == 0)
    identity = make.identity()
    destination = DirectoryDestination(tmp_path)
    assert destination.read_commit(KEY) is None
    rows = Shard(source / KEY.path, identity, record)
    destination.stage_shard(identity, KEY, 0, (rows.read_batch(index) for index in range(rows.num_record_batches)))()
    assert read_commit(tmp_path, KEY) == destination.read_commit(KEY) == record
    check_file(tmp_path, record)
    assert not list(shard.parent.glob(f"{TEMPORARY_PREFIX}*"))


@pytest.mark.parametrize("is_as_long", [False, True])
def test_a_shard_that_is_still_staged_is_not_lost(
    tmp_path: Path, write: Callable[[Path, int], ShardRecord], is_as_long: bool
) -> None:
    num_bytes = write(tmp_path / "elsewhere", 0).shard_bytes if is_as_long else 100
    write_file(tmp_path / KEY.path, b"?" * num_bytes)
    record = write(tmp_path, 0)
    commit_and_be_killed(tmp_path, record)
    assert read_held_commit(tmp_path, KEY) == record
    check_file(tmp_path, record)


def test_the_first_plan_stands(tmp_path: Path, make: SimpleNamespace) -> None:
    first, second = (make.identity(software={"teachonce": version}) for version in ("1", "2"))
    write_plan(tmp_path, first, if_taken="drop")
    write_plan(tmp_path, second, if_taken="drop")
    assert read_plan(tmp_path) == first
    write_plan(tmp_path, second)
    assert read_plan(tmp_path) == second
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_hard_links_takes_shards_too(
    tmp_path: Path, write: Callable[[Path, int], ShardRecord], monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def link(*paths: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "link", link)
    first = write(tmp_path, 0)
    second = write(tmp_path, 1)
    assert staged_path(tmp_path / KEY.path, second.sha256).is_file()
    assert write_commit(tmp_path, second, if_taken="drop") == second
    assert write_commit(tmp_path, first, if_taken="drop") == second
    check_file(tmp_path, second)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2


@pytest.mark.parametrize(("if_taken", "found"), [("replace", b"new"), ("drop", b"old"), ("stage", b"old")])
def test_what_becomes_of_a_file_whose_name_is_taken(tmp_path: Path, if_taken: str, found: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with publishing(path, if_taken) as file:  # type: ignore[arg-type]
        file.write(b"new")
    assert path.read_bytes() == found
    others = {other: other.read_bytes() for other in tmp_path.iterdir() if other != path}
    assert others == ({staged_path(path, file.sha256): b"new"} if if_taken == "stage" else {})
