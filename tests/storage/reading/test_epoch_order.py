from __future__ import annotations

import itertools

import numpy as np
import pytest

from storage.reading.epoch_order import BATCHES_PER_WINDOW, SHARDS_PER_GROUP, STRANDS, EpochOrder
from storage.records.identity import ShardRecord

RECORD_BATCH_ROWS = 4
GOLDEN_ORDER = [15, 1, 5, 8, 18, 14, 7, 11, 19, 3, 13, 10, 17, 12, 6, 2, 16, 0, 4, 9]
ROWS_OF_SHARDS = [
    [1],
    [3],
    [4, 4],
    [8, 7, 5],
    [1, 1, 1, 1, 1],
    [0, 5, 0, 3, 9, 0, 0, 0, 0, 2],
    [300, 3, 0, 41, 16, 16, 1, 77],
    [700],
    np.random.default_rng(0).integers(0, 60, size=23).tolist(),
]


def shard_records(rows: list[int]) -> tuple[ShardRecord, ...]:
    return tuple(
        ShardRecord(
            path=f"samples/train-{index:05d}-of-{len(rows):05d}.arrow",
            first_row_id=sum(rows[:index]),
            num_rows=num_rows,
            num_tokens=0,
            num_targets=0,
            entropy_sum_nats=0.0,
            label_nll_sum_nats=0.0,
            shard_bytes=0,
            sha256="0" * 64,
        )
        for index, num_rows in enumerate(rows)
    )


def order_of(rows: list[int], *, seed: int = 0, epoch: int = 0, shuffle: bool = True) -> EpochOrder:
    return EpochOrder(shard_records(rows), RECORD_BATCH_ROWS, seed=seed, epoch=epoch, shuffle=shuffle)


def row_ids_from(order: EpochOrder, rows: list[int], position: int = 0) -> list[int]:
    """Row ids of the rest of the epoch, expanded window by window without reading anything."""
    first_row_ids = np.concatenate([[0], np.cumsum(rows)])
    found: list[int] = []
    while position < order.num_rows:
        for window in order.windows_from(position):
            stored: list[int] = []
            for shard, batch in window.batches:
                start = batch * RECORD_BATCH_ROWS
                stop = min(start + RECORD_BATCH_ROWS, rows[shard])
                assert start < stop
                stored += range(first_row_ids[shard] + start, first_row_ids[shard] + stop)
            skipped = position - window.first_position
            assert 0 <= skipped < len(window.row_order)
            assert sorted(window.row_order.tolist()) == list(range(len(stored)))
            found += [stored[i] for i in window.row_order[skipped:]]
            position = window.first_position + len(window.row_order)
    return found


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("rows", ROWS_OF_SHARDS, ids=str)
def test_an_epoch_holds_every_row_once(rows: list[int], shuffle: bool) -> None:
    order = order_of(rows, shuffle=shuffle)
    assert order.num_rows == sum(rows)
    found = row_ids_from(order, rows)
    assert sorted(found) == list(range(sum(rows)))
    if not shuffle:
        assert found == sorted(found)


@pytest.mark.parametrize("rows", ROWS_OF_SHARDS, ids=str)
def test_every_position_resumes_in_its_own_window(rows: list[int]) -> None:
    order = order_of(rows)
    whole = row_ids_from(order, rows)
    for position in range(len(whole)):
        first = order.windows_from(position)[0]
        assert first.first_position <= position < first.first_position + len(first.row_order)
    for position in range(0, len(whole), max(1, len(whole) // 40)):
        assert row_ids_from(order, rows, position) == whole[position:]
    assert row_ids_from(order, rows, len(whole)) == []


@pytest.mark.parametrize("rows", ROWS_OF_SHARDS, ids=str)
def test_windows_follow_one_another_without_gap(rows: list[int]) -> None:
    order = order_of(rows)
    position = 0
    while position < order.num_rows:
        for window in order.windows_from(position):
            assert window.first_position == position
            assert 0 < len(window.batches) <= BATCHES_PER_WINDOW
            position += len(window.row_order)
    assert position == order.num_rows


def test_any_position_touches_the_shards_of_one_group() -> None:
    rows = [20] * 50
    order = order_of(rows)
    for position in range(0, 1000, 7):
        shards = {shard for window in order.windows_from(position) for shard, _ in window.batches}
        assert len(shards) <= SHARDS_PER_GROUP


def test_an_epoch_reads_each_shard_in_one_group_only() -> None:
    rows = [20] * 50
    order = order_of(rows)
    groups, position = [], 0
    while position < order.num_rows:
        windows = order.windows_from(position)
        groups.append({shard for window in windows for shard, _ in window.batches})
        position += sum(len(window.row_order) for window in windows)
    assert sum(len(group) for group in groups) == 50
    assert set().union(*groups) == set(range(50))


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    rows = ROWS_OF_SHARDS[-1]
    orders = {
        (seed, epoch): row_ids_from(order_of(rows, seed=seed, epoch=epoch), rows)
        for seed, epoch in itertools.product(range(3), range(3))
    }
    assert len({tuple(found) for found in orders.values()}) == 9
    assert row_ids_from(order_of(rows, seed=1, epoch=2), rows) == orders[1, 2]


def test_the_order_never_changes() -> None:
    rows = [8, 7, 5]
    assert row_ids_from(order_of(rows, seed=7, epoch=1), rows) == GOLDEN_ORDER


def test_neighbours_come_from_everywhere_in_the_window() -> None:
    rows = [64] * 4
    found = np.array(row_ids_from(order_of(rows), rows))
    ideal = len(found) / 3
    assert np.abs(np.diff(found)).mean() == pytest.approx(ideal, rel=0.15)


def test_rows_are_spread_evenly_over_the_epochs() -> None:
    rows = [8, 7, 5]
    places = np.array([np.argsort(row_ids_from(order_of(rows, epoch=epoch), rows)) for epoch in range(600)])
    expected, spread = 19 / 2, np.sqrt((20**2 - 1) / 12 / 600)
    assert np.all(np.abs(places.mean(axis=0) - expected) < 5 * spread)


def test_shards_and_batches_are_permuted_as_well_as_rows() -> None:
    rows = [RECORD_BATCH_ROWS * BATCHES_PER_WINDOW * 2] * SHARDS_PER_GROUP * 2
    windows = order_of(rows).windows_from(0)
    shards = [shard for window in windows for shard, _ in window.batches]
    batches = [batch for window in windows for _, batch in window.batches]
    assert set(shards) != set(range(SHARDS_PER_GROUP))
    assert len(set(shards[:BATCHES_PER_WINDOW])) == SHARDS_PER_GROUP
    assert batches != sorted(batches)


@pytest.mark.parametrize("rows", ROWS_OF_SHARDS)
def test_places_name_the_record_batch_and_the_row_in_it(rows: list[int]) -> None:
    order = order_of(rows)
    position = 0
    while position < order.num_rows:
        for window in order.windows_from(position):
            concatenated = [
                (batch, row) for batch, num_rows in enumerate(window.rows_per_batch) for row in range(num_rows)
            ]
            expected = [concatenated[row] for row in window.row_order.tolist()]
            for skipped in {0, 1, len(expected) // 2, len(expected) - 1}:
                positions = window.first_position + np.arange(skipped, len(expected))
                assert window.places(positions) == expected[skipped:]
                assert window.places(positions[::3]) == expected[skipped::3]
            position = window.first_position + len(expected)


@pytest.mark.parametrize("last_rows", [0, 5])
@pytest.mark.parametrize("num_readers", [1, 2, 4, 8, 16])
def test_the_rows_of_a_reader_are_in_its_share_of_the_record_batches(num_readers: int, last_rows: int) -> None:
    """A short record batch lets a share reach into one more at either end. Readers count on from epoch to epoch."""
    per_window = RECORD_BATCH_ROWS * BATCHES_PER_WINDOW
    share = BATCHES_PER_WINDOW // num_readers + 2 * (last_rows > 0)
    for epoch in (0, 1, 5):
        order = order_of([per_window, per_window, last_rows], epoch=epoch)
        for window in order.windows_from(0)[:2]:
            positions = window.first_position + np.arange(len(window.row_order))
            for reader in range(num_readers):
                mine = positions[(epoch * order.num_rows + positions) % num_readers == reader]
                assert len({batch for batch, _ in window.places(mine)}) <= share


def test_rows_of_a_record_batch_are_strangers_to_each_other() -> None:
    """As many rows as there are strands never hold two of one record batch, wherever they begin."""
    window = order_of([RECORD_BATCH_ROWS * BATCHES_PER_WINDOW]).windows_from(0)[0]
    batches = [batch for batch, _ in window.places(np.arange(len(window.row_order)))]
    for start in range(len(batches) - STRANDS + 1):
        assert len(set(batches[start : start + STRANDS])) == STRANDS


def test_every_row_may_be_anywhere_in_its_window() -> None:
    """Row by row, the share of 4,000 epochs in which it comes in each quarter is a quarter, by Bonferroni's bound."""
    rows, num_epochs = [64], 4000
    places = np.array([np.argsort(row_ids_from(order_of(rows, epoch=epoch), rows)) for epoch in range(num_epochs)])
    counts = np.array([np.sum(places // 16 == quarter, axis=0) for quarter in range(4)])
    spread = np.sqrt(num_epochs * 0.25 * 0.75)
    assert np.abs(counts - num_epochs / 4).max() < 4.5 * spread
