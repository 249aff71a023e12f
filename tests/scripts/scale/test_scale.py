"""The simulation runs real code on made-up records, and its figures are what a plain count says."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from scripts.scale.__main__ import SimulateScaleConfig, main
from scripts.scale.assumptions import Assumptions
from scripts.scale.costs import (
    assumed,
    costs,
    precompute_limits,
    student_tokens_per_s,
    teacher_seconds_per_token,
    training_limits,
)
from scripts.scale.made_up import BYTES_PER_TOKEN, ROWS_PER_SHARD, TOKENS_PER_SHARD, MadeUp, make_up
from scripts.scale.measurements import KIND, MEASUREMENTS, SPLIT, STREAM_POSITION, Figures, epoch_order, measure_all
from scripts.scale.report import render_costs
from scripts.support.flops import forward_flops_per_token
from storage.disk.hashing import sha256_file
from storage.errors import ConfigError
from storage.reading.cache import open_cache
from storage.records.commits import read_commit
from storage.records.manifest import MANIFEST_NAME
from tests.places import ROOT

NUM_SHARDS = 201
ROWS = NUM_SHARDS * ROWS_PER_SHARD


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> MadeUp:
    return make_up(tmp_path_factory.mktemp("made_up"), NUM_SHARDS)


@pytest.fixture(scope="module")
def manifest_sha256(made_up: MadeUp) -> str:
    return sha256_file(made_up.finished / MANIFEST_NAME)


@pytest.fixture(scope="module")
def figures(made_up: MadeUp, manifest_sha256: str) -> dict[str, Figures]:
    measured = list(measure_all(made_up))
    assert all(one.seconds > 0 and one.peak_bytes >= 0 for one in measured)
    return {one.what: one.figures for one in measured}


def test_made_up_records_take_no_room_and_read_as_real_ones(made_up: MadeUp) -> None:
    cache = open_cache(made_up.finished)
    assert len({shard.sha256 for shard in cache.manifest.shards}) == NUM_SHARDS
    assert cache.num_rows(KIND, SPLIT) == ROWS
    shard_bytes = sum(shard.shard_bytes for shard in cache.manifest.shards)
    assert shard_bytes == pytest.approx(NUM_SHARDS * TOKENS_PER_SHARD * BYTES_PER_TOKEN, rel=0.01)
    assert not list(made_up.finished.rglob("*.arrow"))
    assert (made_up.tokens / SPLIT / "tokens.bin").stat().st_blocks * 512 < 1e6
    keys = cache.identity.planned_keys()
    assert [read_commit(made_up.begun, key) is not None for key in keys] == [True] * 100 + [False] * 101


def test_every_measurement_goes_over_the_whole_plan(figures: dict[str, Figures]) -> None:
    whole = {"shards": NUM_SHARDS, "rows": ROWS}
    assert [figures[m.what] for m in MEASUREMENTS] == [
        whole,
        {"committed shards": 100, "next row": 100 * ROWS_PER_SHARD},
        figures["join commit records into the manifest"],
        whole,
        whole,
        {"shards": 100, "rows": 100 * ROWS_PER_SHARD},
        figures["inspect"],
        {"rows": ROWS, "rows in the window": 1024},
        {"rows": ROWS, "record batches": ROWS // 16, "windows": figures["order of an epoch: all of it"]["windows"]},
        figures["find position 1,000,000,000 of the stream"],
        {"commit records": NUM_SHARDS, "problems": 0},
        {"shards to send": NUM_SHARDS},
        {"shards to fetch": NUM_SHARDS},
        {"shards to link": 2 * NUM_SHARDS},
    ]


def test_joining_again_gives_the_same_manifest(
    made_up: MadeUp, manifest_sha256: str, figures: dict[str, Figures]
) -> None:
    assert figures["join commit records into the manifest"] == {
        "manifest bytes": (made_up.finished / MANIFEST_NAME).stat().st_size,
        "sha256": manifest_sha256[:16],
    }


def test_inspect_adds_up_what_is_recorded(made_up: MadeUp, figures: dict[str, Figures]) -> None:
    shards = open_cache(made_up.finished).manifest.shards
    assert figures["inspect"] == {
        "tokens": NUM_SHARDS * TOKENS_PER_SHARD,
        "bytes": sum(shard.shard_bytes for shard in shards),
    }


def test_the_position_found_holds_the_row_that_a_plain_count_says(made_up: MadeUp, figures: dict[str, Figures]) -> None:
    """Counts from the first row of the stream on, window by window and epoch by epoch."""
    cache = open_cache(made_up.finished)
    shards = cache.shards(KIND, SPLIT)
    left, epoch = STREAM_POSITION, 0
    while left >= ROWS:
        left, epoch = left - ROWS, epoch + 1
    order = epoch_order(cache, epoch)
    first_of_window, found = 0, None
    while found is None:
        for window in order.windows_from(first_of_window):
            rows = [
                shards[shard].first_row_id + 16 * batch + row
                for (shard, batch), count in zip(window.batches, window.rows_per_batch, strict=True)
                for row in range(count if left < len(window.row_order) else 0)
            ]
            if left < len(window.row_order):
                found = rows[window.row_order[left]]
                break
            left -= len(window.row_order)
            first_of_window += len(window.row_order)
    assert figures["find position 1,000,000,000 of the stream"] == {
        "epoch": epoch,
        "position": STREAM_POSITION - epoch * ROWS,
        "row_id": found,
    }


def test_an_epoch_has_every_record_batch_once(made_up: MadeUp) -> None:
    cache = open_cache(made_up.finished)
    order = epoch_order(cache, 0)
    seen: set[tuple[int, int]] = set()
    position = 0
    while position < ROWS:
        for window in order.windows_from(position):
            assert np.array_equal(np.sort(window.row_order), np.arange(sum(window.rows_per_batch)))
            seen.update(window.batches)
            position += len(window.row_order)
    assert seen == {(shard, batch) for shard in range(NUM_SHARDS) for batch in range(ROWS_PER_SHARD // 16)}


def test_flops_are_those_of_the_products() -> None:
    """Every product of a 2-layer model written out, a multiplication and an addition each."""
    layers, width, vocab_size, block_size = 2, 8, 50, 6
    weights = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    products = layers * sum(2 * rows * columns for rows, columns in weights) + 2 * width * vocab_size
    # Token t + 1/2 sees as many tokens on average; scores and weighted values take 2 width operations for each.
    attention = layers * sum(2 * 2 * width * (t + 0.5) for t in range(block_size)) / block_size
    assert forward_flops_per_token(layers, width, vocab_size, block_size) == products + attention


def test_costs_follow_from_what_enters() -> None:
    a = Assumptions()
    amounts = {(cost.what, cost.unit): cost.value for cost in costs(a)}
    assert amounts["cache", "TB"] == pytest.approx(1e12 * 33.6 / 1e12)
    assert amounts["teacher", "GPU-hours"] == pytest.approx(1e12 / amounts["teacher", "tokens/s per GPU"] / 3600)
    assert amounts["teacher", "MFLOP/token"] == pytest.approx(2 * 1.5548e9 / 1e6 + 78.6, rel=0.001)
    assert amounts["verify", "core-hours"] == pytest.approx(a.num_tokens / a.verify_tokens_per_s / 3600)
    boxes = {(cost.what, cost.unit): cost.value for cost in costs(dataclasses.replace(a, cores_per_box=16))}
    for what in ("tokenizing", "verify"):
        assert boxes[what, "core-hours"] == amounts[what, "core-hours"]
        assert boxes[f"{what}, the wait", "hours"] == pytest.approx(amounts[what, "core-hours"] / 16)
    assert boxes["verify at a URL", "hours"] == boxes["verify, the wait", "hours"]  # 16 cores wait for no network
    assert amounts["verify at a URL", "hours"] == pytest.approx(33.6e12 / 3e9 / 3600)
    assert amounts["made at a URL: bytes over the network", "TB"] == pytest.approx(2 * 33.6)
    half = dataclasses.replace(a, flops_utilisation=0.2)
    assert teacher_seconds_per_token(half) < 2 * teacher_seconds_per_token(a)  # passes over logits stay
    assert student_tokens_per_s(half) == pytest.approx(student_tokens_per_s(a) / 2)


def test_limits_are_shares_the_scarcest_first() -> None:
    a = Assumptions()
    for limits in (precompute_limits(a), training_limits(a)):
        shares = [limit.asked / limit.available for limit in limits]
        assert shares == [limit.share for limit in limits] == sorted(shares, reverse=True)
    arithmetic = next(limit for limit in precompute_limits(a) if "arithmetic" in limit.resource)
    assert arithmetic.share < a.flops_utilisation
    decoding, proving = (
        [
            next(limit.share for limit in training_limits(given) if what in limit.resource)
            for given in (dataclasses.replace(a, gpus_per_box=ranks) for ranks in (1, 8, 64))
        ]
        for what in ("stream", "proof")
    )
    assert decoding == pytest.approx([decoding[0], decoding[0], 4 * decoding[0]])
    assert proving == pytest.approx([proving[0], 8 * proving[0], 64 * proving[0]])


def test_a_number_from_the_command_line_says_so() -> None:
    given = Assumptions(flops_utilisation=0.3)
    assert {number.what for number in assumed(given) if number.how == "command line"} == {"flops_utilisation"}
    with pytest.raises(ConfigError, match=r"--assume\.lookup-s is 0"):
        Assumptions(lookup_s=0)


@pytest.mark.parametrize("changes", [{"num_shards": 1}, {"parts": ()}])
def test_settings_that_leave_nothing_to_do_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        SimulateScaleConfig(**changes)  # type: ignore[arg-type]


def test_the_page_shows_what_the_script_prints() -> None:
    page = (ROOT / "docs" / "scale.md").read_text()
    assert render_costs(Assumptions()) in page
    assert all(f"\n| {measurement.what} | " in page for measurement in MEASUREMENTS)


def test_the_command_prints_one_document(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, whose helpers have imported everything already."""
    monkeypatch.setattr("sys.argv", ["scale", "--num-shards", "4", "--json"])
    main()
    document = json.loads(capsys.readouterr().out)
    assert [one["what"] for one in document["measurements"]] == [m.what for m in MEASUREMENTS]
    assert document["costs"]
    assert document["assumptions"]
