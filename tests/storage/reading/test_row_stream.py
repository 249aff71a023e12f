from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage import RowStream, StreamBatch, StreamState, open_cache
from storage.errors import HashMismatchError, MissingKindError, TeachonceError
from storage.reading import checks, epoch_order, proofs
from storage.reading.cache import Cache
from storage.reading.checks import Checks
from storage.reading.epoch_order import EpochOrder
from storage.records.identity import ShardRecord
from storage.rows.kinds import KINDS
from storage.shards.shard import Shard
from tests.storage.reading.readers import watched_checks


@pytest.fixture
def _many_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of two shards and windows of three record batches, so that small caches have several."""
    monkeypatch.setattr(epoch_order, "SHARDS_PER_GROUP", 2)
    monkeypatch.setattr(epoch_order, "BATCHES_PER_WINDOW", 3)


pytestmark = pytest.mark.usefixtures("_many_windows")


def stream(cache: Cache, batch_rows: int, **settings: Any) -> RowStream:
    kind = settings.pop("kind", "soft_targets")
    return RowStream(cache, kind, "train", batch_rows=batch_rows, **({"seed": 3} | settings))


def row_ids(batch: StreamBatch) -> list[int]:
    ids: list[int] = batch.rows.column("row_id").to_pylist()
    return ids


def take(batches: Iterator[StreamBatch], count: int) -> list[list[int]]:
    return [row_ids(batch) for batch in islice(batches, count)]


def epochs_of(cache: Cache, count: int, **settings: Any) -> list[list[int]]:
    """The first epochs, row by row."""
    rows = stream(cache, 1, **settings)
    flat = [ids[0] for ids in take(rows.batches(), count * rows.num_rows)]
    return [flat[e * rows.num_rows : (e + 1) * rows.num_rows] for e in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_each_epoch_holds_every_row_once_in_another_order(cache: Cache, kind: str) -> None:
    epochs = epochs_of(cache, 3, kind=kind)
    assert [sorted(epoch) for epoch in epochs] == [list(range(cache.num_rows(kind, "train")))] * 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_without_shuffling_every_epoch_is_in_stored_order(cache: Cache) -> None:
    assert epochs_of(cache, 2, shuffle=False) == [list(range(cache.num_rows("soft_targets", "train")))] * 2


def test_the_stream_is_a_pure_function_of_its_seed(cache: Cache) -> None:
    assert epochs_of(cache, 2, seed=5) == epochs_of(cache, 2, seed=5)
    assert epochs_of(cache, 1, seed=5) != epochs_of(cache, 1, seed=6)


@pytest.mark.parametrize("batch_rows", [1, 4, 7, 123, 124, 300])
def test_the_size_of_batches_does_not_change_the_order(cache: Cache, batch_rows: int) -> None:
    flat = [row for epoch in epochs_of(cache, 6) for row in epoch]
    batches = take(stream(cache, batch_rows).batches(), 600 // batch_rows)
    assert all(len(batch) == batch_rows for batch in batches)
    joined = [row for batch in batches for row in batch]
    assert joined == flat[: len(joined)]


def test_rows_come_whole_and_as_they_were_stored(cache: Cache) -> None:
    stored = pa.Table.from_batches(cache.record_batches("soft_targets", "train"))
    for batch in islice(stream(cache, 50).batches(), 4):
        assert batch.rows.schema.equals(stored.schema)
        assert batch.rows.equals(stored.take(row_ids(batch)).combine_chunks().to_batches()[0])


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_rows", [8, 10, 24])
def test_readers_share_one_stream(cache: Cache, world_size: int, batch_rows: int) -> None:
    alone = list(islice(stream(cache, batch_rows).batches(), 20))
    shared = [
        list(islice(stream(cache, batch_rows, rank=rank, world_size=world_size).batches(), 20))
        for rank in range(world_size)
    ]
    for step, batch in enumerate(alone):
        woven = np.full(batch_rows, -1)
        for rank in range(world_size):
            woven[rank::world_size] = row_ids(shared[rank][step])
            assert shared[rank][step].next_state == batch.next_state
        assert woven.tolist() == row_ids(batch)


def test_a_reader_without_rows_in_a_small_batch_meets_no_foreign_error(cache: Cache) -> None:
    try:
        batch = next(stream(cache, 3, rank=5, world_size=8).batches())
    except TeachonceError:
        return
    assert batch.rows.num_rows == 0


@pytest.mark.parametrize(("kind", "batch_rows"), [("soft_targets", 7), ("samples", 1), ("beams", 5)])
def test_resuming_at_every_position_gives_the_same_tail(cache: Cache, kind: str, batch_rows: int) -> None:
    """Batches whose size has no factor in common with the rows visit every position of an epoch."""
    rows = stream(cache, batch_rows, kind=kind)
    assert np.gcd(batch_rows, rows.num_rows) == 1
    whole = list(islice(rows.batches(), rows.num_rows + 12))
    ids = [row_ids(batch) for batch in whole]
    positions = {batch.next_state.position for batch in whole[: rows.num_rows]}
    assert positions == set(range(rows.num_rows))
    for step in range(rows.num_rows):
        resumed = stream(cache, batch_rows, kind=kind).batches(whole[step].next_state)
        assert take(resumed, 11) == ids[step + 1 : step + 12]


def test_resuming_far_into_the_stream_gives_the_whole_tail(cache: Cache) -> None:
    whole = list(islice(stream(cache, 10).batches(), 60))
    for step in (0, 1, 11, 12, 24, 36, 47):
        resumed = list(islice(stream(cache, 10).batches(whole[step].next_state), 59 - step))
        assert [row_ids(batch) for batch in resumed] == [row_ids(batch) for batch in whole[step + 1 :]]
        assert [batch.next_state for batch in resumed] == [batch.next_state for batch in whole[step + 1 :]]


def test_eight_readers_then_two_then_eight_continue_one_stream(cache: Cache) -> None:
    batch_rows = 24
    expected = [sorted(ids) for ids in take(stream(cache, batch_rows).batches(), 30)]
    found, state = [], StreamState()
    for world_size in (8, 2, 8):
        readers = [
            stream(cache, batch_rows, rank=rank, world_size=world_size).batches(state) for rank in range(world_size)
        ]
        for _ in range(10):
            batches = [next(reader) for reader in readers]
            found.append(sorted(row for batch in batches for row in row_ids(batch)))
            state = batches[0].next_state
    assert found == expected


def test_a_batch_may_span_two_epochs(cache: Cache) -> None:
    num_rows = cache.num_rows("soft_targets", "train")
    epochs = epochs_of(cache, 2)
    first, second = islice(stream(cache, num_rows - 5).batches(), 2)
    assert row_ids(first) == epochs[0][:-5]
    assert first.next_state == StreamState(epoch=0, position=num_rows - 5)
    assert row_ids(second) == epochs[0][-5:] + epochs[1][:-10]
    assert second.next_state == StreamState(epoch=1, position=num_rows - 10)


def test_a_batch_may_be_larger_than_an_epoch(cache: Cache) -> None:
    num_rows = cache.num_rows("beams", "train")
    flat = [row for epoch in epochs_of(cache, 9, kind="beams") for row in epoch]
    batch_rows = 3 * num_rows + 4
    batches = list(islice(stream(cache, batch_rows, kind="beams").batches(), 2))
    assert [row for batch in batches for row in row_ids(batch)] == flat[: 2 * batch_rows]
    assert batches[1].next_state == StreamState(epoch=6, position=8)


def test_a_batch_that_ends_with_the_epoch_leaves_the_next_at_its_start(cache: Cache) -> None:
    num_rows = cache.num_rows("soft_targets", "train")
    batch = next(stream(cache, num_rows).batches())
    assert batch.next_state == StreamState(epoch=1, position=0)


def test_streams_of_one_cache_do_not_disturb_each_other(cache: Cache) -> None:
    expected = take(stream(cache, 9).batches(), 30)
    first, second = stream(cache, 9), stream(cache, 9)
    interleaved = [(row_ids(a), row_ids(b)) for a, b in islice(zip(first.batches(), second.batches(), strict=True), 30)]
    assert interleaved == [(ids, ids) for ids in expected]
    one = stream(cache, 9)
    assert take(one.batches(), 30) == take(one.batches(), 30) == expected


def test_damage_surfaces_in_the_reader_as_its_own_class(small_cache: Path) -> None:
    shard = small_cache / "soft_targets" / "train-00001-of-00003.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(HashMismatchError, match=shard.name):
        list(islice(stream(open_cache(small_cache), 4).batches(), 5))


def test_a_shard_without_rows_is_passed_over(tmp_path: Path, make: SimpleNamespace) -> None:
    rows = {"samples": {"train": [4, 0, 0, 3, 0]}}
    cache = open_cache(make.cache(tmp_path / "cache", rows))
    assert [sorted(epoch) for epoch in epochs_of(cache, 3, kind="samples")] == [list(range(7))] * 3


def test_rows_that_the_cache_lacks_are_refused_at_once(small_cache: Path) -> None:
    with pytest.raises(MissingKindError):
        RowStream(open_cache(small_cache), "samples", "validation", batch_rows=1, seed=0)


def test_only_the_shards_at_hand_are_opened(
    tmp_path: Path, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(make.cache(tmp_path / "cache", {"samples": {"train": [4] * 20}}))
    opened: list[str] = []
    monkeypatch.setattr(Cache, "open_shard", counting(Cache.open_shard, opened))
    batches = stream(cache, 4, kind="samples").batches(StreamState(epoch=0, position=40))
    next(batches)
    assert 0 < len(set(opened)) <= 4
    batches.close()


def counting(original: Any, opened: list[str]) -> Any:
    def open_shard(cache: Cache, record: Any) -> Any:
        opened.append(record.path)
        return original(cache, record)

    return open_shard


def test_a_closed_stream_leaves_no_thread(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "notes_path", lambda: tmp_path / "notes")
    before = set(threading.enumerate())
    batches = stream(cache, 4).batches()
    next(batches)
    names = {thread.name.partition("_")[0] for thread in set(threading.enumerate()) - before}
    assert names == {"teachonce-reader"}
    batches.close()
    del batches
    assert set(threading.enumerate()) <= before


def test_a_closed_stream_ends_though_checks_are_left_and_opens_no_shard(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proofs, "notes_path", lambda: tmp_path / "notes")
    monkeypatch.setattr(epoch_order, "BATCHES_PER_WINDOW", 64)
    monkeypatch.setattr(checks, "_TOGETHER_BYTES", 1)
    opened: list[str] = []
    monkeypatch.setattr(Cache, "open_shard", counting(Cache.open_shard, opened))

    def check_nothing_until_the_end(_: Checks, is_closed: Any) -> None:
        while not is_closed():
            time.sleep(0.001)

    monkeypatch.setattr(Checks, "run_rest", check_nothing_until_the_end)
    order = EpochOrder(
        cache.shards("soft_targets", "train"), cache.identity.record_batch_rows, seed=3, epoch=0, shuffle=False
    )
    (window,) = order.windows_from(0)
    batches = stream(cache, 1, shuffle=False).batches()
    take(batches, len(window.row_order) // 2 + 1)  # past the middle: the next window, of other shards, is queued
    in_first_group = list(opened)
    batches.close()
    assert opened == in_first_group


def test_a_process_that_abandons_a_stream_ends(small_cache: Path, run_python: Any) -> None:
    code = (
        "import sys, storage\n"
        "stream = storage.RowStream(storage.open_cache(sys.argv[1]), 'samples', 'train', batch_rows=4, seed=0)\n"
        "batches = stream.batches()\n"
        "print(next(batches).rows.num_rows)"
    )
    done = run_python(code, small_cache)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")


def watched_reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ShardRecord, int]]:
    """Grows by the shard and index of each record batch that is read."""
    read: list[tuple[ShardRecord, int]] = []
    original = Shard.read_unchecked

    def read_unchecked(shard: Shard, index: int) -> pa.RecordBatch:
        read.append((shard.record, index))
        return original(shard, index)

    monkeypatch.setattr(Shard, "read_unchecked", read_unchecked)
    return read


def test_record_batches_are_read_once_an_epoch_in_the_order_of_their_first_rows(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = watched_reads(monkeypatch)
    rows = stream(cache, 1)
    ids = [ids[0] for ids in take(rows.batches(), rows.num_rows)]
    per_batch = cache.identity.record_batch_rows
    firsts = {record.first_row_id: record.num_rows for record in cache.shards("soft_targets", "train")}
    first_of_batch = {
        start + i: start + i // per_batch * per_batch for start, count in firsts.items() for i in range(count)
    }
    expected = list(dict.fromkeys(first_of_batch[row] for row in ids))
    assert [record.first_row_id + index * per_batch for record, index in read[: len(expected)]] == expected


def test_the_next_window_is_read_from_the_middle_of_one_on(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    read = watched_reads(monkeypatch)
    shards, per_batch = cache.shards("soft_targets", "train"), cache.identity.record_batch_rows
    window = EpochOrder(shards, per_batch, seed=3, epoch=0, shuffle=True).windows_from(0)[0]
    batches = stream(cache, 1).batches()
    take(batches, len(window.row_order) // 2)
    time.sleep(0.2)
    assert len(read) == len(window.batches)
    next(batches)
    for _ in range(1000):
        if len(read) > len(window.batches):
            break
        time.sleep(0.01)
    assert len(read) > len(window.batches)


@pytest.mark.parametrize("num_readers", [2, 8])
def test_a_reader_reads_its_share_of_the_record_batches(
    tmp_path: Path, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, num_readers: int
) -> None:
    monkeypatch.undo()  # windows as large as they are
    cache = open_cache(make.cache(tmp_path / "cache", {"samples": {"train": [256, 256]}}))
    read = watched_reads(monkeypatch)
    readers = []
    for rank in range(num_readers):
        read.clear()
        rows = RowStream(cache, "samples", "train", batch_rows=16, seed=0, rank=rank, world_size=num_readers)
        batches = rows.batches()
        take(batches, 512 // 16)
        batches.close()
        readers.append({(record.path, index) for record, index in read[: 128 // num_readers]})
    assert set().union(*readers) == {(record.path, i) for record in cache.manifest.shards for i in range(64)}
    assert sum(map(len, readers)) == 128, "no record batch is anybody else's"


def test_rows_that_are_needed_before_their_turn_are_checked_by_who_needs_them(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proofs, "notes_path", lambda: tmp_path / "notes")
    checked, has_read_all, ended = watched_checks(monkeypatch), threading.Event(), threading.Event()

    def check_nothing(*_: object) -> None:
        has_read_all.set()
        ended.wait(60)

    monkeypatch.setattr(Checks, "run_rest", check_nothing)
    shards, per_batch = cache.shards("soft_targets", "train"), cache.identity.record_batch_rows
    window = EpochOrder(shards, per_batch, seed=3, epoch=0, shuffle=True).windows_from(0)[0]
    batches = stream(cache, 1).batches()
    assert len(take(batches, len(window.row_order) // 2)) == len(window.row_order) // 2
    assert len(checked) == len(set(checked)) == len(window.batches)
    assert has_read_all.wait(60)
    ended.set()
    batches.close()


def test_rows_are_checked_before_they_are_needed(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "notes_path", lambda: tmp_path / "notes")
    checked = watched_checks(monkeypatch)
    shards, per_batch = cache.shards("soft_targets", "train"), cache.identity.record_batch_rows
    window = EpochOrder(shards, per_batch, seed=3, epoch=0, shuffle=True).windows_from(0)[0]
    batches = stream(cache, 1).batches()
    next(batches)
    for _ in range(1000):
        if len(checked) == len(window.batches):
            break
        time.sleep(0.01)
    assert len(checked) == len(set(checked)) == len(window.batches)
    batches.close()


def test_rows_of_a_proved_shard_are_checked_once(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = watched_checks(monkeypatch)
    monkeypatch.setattr(proofs, "notes_path", lambda: tmp_path / "notes")
    take(stream(cache, 4).batches(), cache.num_rows("soft_targets", "train"))  # four epochs
    per_batch = cache.identity.record_batch_rows
    num_batches = sum(-(-record.num_rows // per_batch) for record in cache.shards("soft_targets", "train"))
    assert len(checked) == len(set(checked)) == num_batches
