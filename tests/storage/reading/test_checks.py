from __future__ import annotations

import functools
import threading
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from storage import open_cache
from storage.errors import RowError, ShardFormatError
from storage.reading import checks as module
from storage.reading.checks import Check, Checks
from storage.shards import shard as shards
from storage.shards.shard import all_obey

NUM_BATCHES = 5


@pytest.fixture
def noted() -> list[int]:
    return []


@pytest.fixture
def checks(tmp_path: Path, make: SimpleNamespace, noted: list[int]) -> dict[int, Check]:
    """The checks of the record batches of one shard, which are read."""
    size = make.identity().record_batch_rows
    cache = open_cache(make.cache(tmp_path / "cache", {"soft_targets": {"train": [size * NUM_BATCHES - 1]}}))
    shard = cache.open_shard(cache.shards("soft_targets", "train")[0])
    found = {}
    for index in range(NUM_BATCHES):
        read: Future[pa.RecordBatch] = Future()
        read.set_result(shard.read_unchecked(index))
        found[index] = Check(shard=shard, index=index, read=read, note=functools.partial(noted.append, index))
    return found


def with_other_rows(check: Check, rows: pa.RecordBatch | None, error: Exception | None = None) -> Check:
    read: Future[pa.RecordBatch] = Future()
    read.set_exception(error) if error else read.set_result(rows)
    return Check(shard=check.shard, index=check.index, read=read, note=check.note)


def bytes_of_two(checks: dict[int, Check]) -> int:
    return 2 * max(check.read_bytes or 0 for check in checks.values())


def parts(checks: dict[int, Check]) -> list[tuple[shards.Shard, int, pa.RecordBatch]]:
    return [(check.shard, check.index, check.read.result()) for check in checks.values()]


def run(checks: dict[int, Check]) -> dict[int, BaseException | None]:
    """What each check raised once all have run."""
    Checks(dict(checks)).run_rest(lambda: False)
    return {index: check.done.exception(timeout=0) for index, check in checks.items()}


@pytest.mark.parametrize("together_bytes", [1, 1 << 30])
def test_right_rows_are_checked_and_noted(
    checks: dict[int, Check], noted: list[int], monkeypatch: pytest.MonkeyPatch, together_bytes: int
) -> None:
    monkeypatch.setattr(module, "_TOGETHER_BYTES", together_bytes)
    assert set(run(checks).values()) == {None}
    assert noted == [4, 3, 2, 1, 0], "the one that is needed last comes first"
    for index, check in checks.items():
        assert check.done.result() is check.read.result(), f"record batch {index}"


@pytest.mark.parametrize(("together_bytes", "sizes"), [(1, [1] * 5), ("two", [2, 2, 1]), (1 << 30, [5])])
def test_small_record_batches_are_checked_together(
    checks: dict[int, Check], monkeypatch: pytest.MonkeyPatch, together_bytes: int | str, sizes: list[int]
) -> None:
    batches = [check.read.result() for check in checks.values()]
    monkeypatch.setattr(module, "_TOGETHER_BYTES", bytes_of_two(checks) if together_bytes == "two" else together_bytes)
    seen: list[int] = []
    original = shards.check_rows
    monkeypatch.setattr(shards, "check_rows", lambda rows, *rest: (seen.append(rows.num_rows), original(rows, *rest)))
    run(checks)
    per_batch = batches[0].num_rows
    assert [-(-num_rows // per_batch) for num_rows in seen] == sizes


@pytest.mark.parametrize("bad", range(NUM_BATCHES))
def test_a_wrong_row_is_named_and_spares_the_other_record_batches(
    checks: dict[int, Check], noted: list[int], forge: SimpleNamespace, bad: int
) -> None:
    wrong = forge.column(checks[bad].read.result(), "entropy", lambda values: values[-1].__setitem__(0, 99.0))
    checks[bad] = with_other_rows(checks[bad], wrong)
    assert not all_obey(parts(checks))
    errors = run(checks)
    assert [index for index, error in errors.items() if error] == [bad]
    error = errors[bad]
    assert isinstance(error, RowError)
    assert (error.column, error.where.rpartition(", ")[2]) == ("entropy", f"record batch {bad}")
    assert sorted(noted) == [index for index in range(NUM_BATCHES) if index != bad]


def test_a_record_batch_in_anothers_place_is_refused(checks: dict[int, Check]) -> None:
    assert all_obey(parts(checks))
    first, second = checks[0].read.result(), checks[1].read.result()
    checks[0], checks[1] = with_other_rows(checks[0], second), with_other_rows(checks[1], first)
    assert not all_obey(parts(checks))
    errors = run(checks)
    assert [(index, getattr(error, "column", "")) for index, error in errors.items() if error] == [
        (0, "row_id"),
        (1, "row_id"),
    ]


def test_what_cannot_be_read_raises_its_error_and_spares_the_others(checks: dict[int, Check]) -> None:
    error = ShardFormatError("here", "cannot be read")
    checks[2] = with_other_rows(checks[2], None, error)
    errors = run(checks)
    assert errors.pop(2) is error
    assert set(errors.values()) == {None}


def test_a_fault_of_ours_reaches_who_waits_for_the_rows(
    checks: dict[int, Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    def divide(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(shards, "check_rows", divide)
    assert {type(error) for error in run(checks).values()} == {ZeroDivisionError}


def test_the_one_that_is_needed_brings_the_next_ones_that_are_read_and_small(
    checks: dict[int, Check], noted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TOGETHER_BYTES", bytes_of_two(checks))
    unread: Future[pa.RecordBatch] = Future()
    checks[4] = Check(shard=checks[4].shard, index=4, read=unread, note=checks[4].note)
    shared = Checks(dict(checks))
    shared.run_needed(1)
    assert noted == [1, 0], "with the next one in the order of need"
    shared.run_needed(1)
    shared.run_needed(0)
    assert noted == [1, 0], "nothing is checked twice"
    shared.run_needed(3)
    assert noted == [1, 0, 3, 2]
    assert not checks[4].done.done()
    unread.set_result(checks[4].shard.read_unchecked(4))
    shared.run_needed(4)
    assert noted == [1, 0, 3, 2, 4]


def test_the_one_that_is_needed_waits_for_no_other(checks: dict[int, Check], noted: list[int]) -> None:
    unread: dict[int, Check] = {
        index: Check(shard=check.shard, index=index, read=Future(), note=check.note) for index, check in checks.items()
    }
    shared = Checks(dict(unread))
    unread[2].read.set_result(checks[2].read.result())
    shared.run_needed(2)
    assert noted == [2]
    assert [index for index, check in unread.items() if check.done.done()] == [2]


def test_two_threads_that_share_the_checks_run_each_once(checks: dict[int, Check], noted: list[int]) -> None:
    for _ in range(200):
        noted.clear()
        fresh = {index: with_other_rows(check, check.read.result()) for index, check in checks.items()}
        shared = Checks(dict(fresh))
        reader = threading.Thread(target=shared.run_rest, args=(lambda: False,))
        reader.start()
        for index, check in fresh.items():
            shared.run_needed(index)
            assert check.done.result(timeout=60) is check.read.result()
        reader.join()
        assert sorted(noted) == list(range(NUM_BATCHES))


def test_a_large_record_batch_is_not_checked_with_a_small_one(
    checks: dict[int, Check], noted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TOGETHER_BYTES", bytes_of_two(checks) - 1)
    Checks(dict(checks)).run_needed(0)
    assert noted == [0]


@pytest.mark.parametrize("is_bad", [False, True])
def test_ctrl_c_in_a_check_is_raised_and_ends_those_that_were_taken(
    checks: dict[int, Check], monkeypatch: pytest.MonkeyPatch, is_bad: bool
) -> None:
    def interrupted(rows: pa.RecordBatch, *_: object) -> None:
        if is_bad and rows.num_rows > checks[0].read.result().num_rows:
            raise RowError("here", "entropy", "so that they are checked one by one")
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "check_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Checks(dict(checks)).run_needed(0)
    assert {type(check.done.exception(timeout=0)) for check in checks.values()} == {KeyboardInterrupt}


def test_a_closed_stream_checks_nothing_more(checks: dict[int, Check]) -> None:
    Checks(dict(checks)).run_rest(lambda: True)
    assert not any(check.done.done() for check in checks.values())
