"""The column is_wanted of soft targets: which targets the teacher should teach. A cache with it has version 2."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage import RowStream, open_cache, verify_cache
from storage.errors import CacheError, FormatVersionError, MergeError, RowError, ShardFormatError
from storage.reading.inspection import render_head, render_summary, summarize
from storage.records import identity as identities
from storage.records.identity import ShardKey
from storage.rows import soft_targets
from storage.rows.soft_targets import SoftTargetRows
from storage.shards.shard import batch_stats, write_shard
from storage.sharing.archive import pack, unpack
from storage.sharing.compaction import compact
from storage.sharing.merging import merge
from storage.sharing.transfer import pull, push
from tests.storage.broken_rows import BrokenRow, assert_refused
from tests.storage.hostile import read_batches

SETTINGS = {"top_k": 3, "tail_weight": 0.25, "is_wanted": True}
SHARD = "soft_targets/train-00000-of-00003.arrow"


@pytest.fixture
def hand_made_rows() -> SoftTargetRows:
    """Two blocks of four targets, of which three are wanted; in the second, target 1 crosses into another document."""
    wanted = np.array([[0, 1, 1, 0], [0, 0, 0, 1]], dtype=np.bool_)
    return SoftTargetRows(
        row_id=np.array([4, 5]),
        input_ids=np.array([[0, 1, 2, 3, 4], [9, 8, 7, 6, 5]], dtype=np.uint16),
        segment_lengths=[np.array([5]), np.array([2, 3])],
        is_wanted=wanted,
        head_size=2 * wanted,
        tail_size=2 * wanted,
        ids=np.tile([3, 6, 0, 9], 3).astype(np.uint16),
        logprobs=np.tile(np.log([0.5, 0.25]), 3),
        tail_logprob=np.where(wanted, np.log(0.25), 0.0),
        entropy=np.where(wanted, 1.5, 0.0),
        label_logprob=np.where(wanted, -2.0, 0.0),
        tempered_tail_logmass={2.0: np.where(wanted, 0.75, 0.0)},
    )


@pytest.fixture
def batch(hand_made_rows: SoftTargetRows) -> pa.RecordBatch:
    return soft_targets.encode(hand_made_rows, soft_targets.schema(10, 4, (1.0, 2.0), is_wanted=True), 10)


@pytest.fixture
def wanted_cache(make: SimpleNamespace, tmp_path: Path) -> Path:
    """A small cache of version 2 with shards of every kind, and blocks without one wanted target."""
    written: Path = make.cache(tmp_path / "cache", config={"soft_targets": SETTINGS})
    return written


def test_the_column_stands_after_the_segments_and_is_decoded_again(batch: pa.RecordBatch) -> None:
    batch.validate(full=True)
    assert batch.schema.names[1:5] == ["input_ids", "segment_lengths", "is_wanted", "head_size"]
    assert batch.schema.field("is_wanted").type == pa.list_(pa.field("item", pa.bool_(), nullable=False), 4)
    rows = soft_targets.decode(batch)
    assert rows.is_wanted is not None
    assert rows.is_wanted.tolist() == [[False, True, True, False], [False, False, False, True]]
    assert rows.is_valid_target.tolist() == rows.is_wanted.tolist()
    assert soft_targets.decode(batch.slice(1)).is_valid_target.tolist() == [[False, False, False, True]]


def test_rows_without_the_column_want_every_target(make: SimpleNamespace) -> None:
    rows = make.soft_target_rows(4)
    decoded = soft_targets.decode(soft_targets.encode(rows, soft_targets.schema(50, 6, (1.0, 2.0)), 10))
    assert decoded.is_wanted is None
    np.testing.assert_array_equal(decoded.is_valid_target, decoded.is_in_one_segment)


def test_statistics_count_wanted_targets_alone(batch: pa.RecordBatch) -> None:
    stats = batch_stats(batch, "soft_targets")
    assert (stats.num_tokens, stats.num_targets) == (10, 3)
    assert (stats.entropy_sum_nats, stats.label_nll_sum_nats) == (3 * 1.5, 3 * 2.0)


def put(row: int, place: int, value: object) -> Callable[[list[Any]], None]:
    """An edit that sets one value of one row."""
    return lambda rows: rows[row].__setitem__(place, value)


BROKEN_ROWS: dict[str, BrokenRow] = {
    "wanted across two segments": ({"is_wanted": put(1, 1, True)}, "is_wanted", "across two segments"),
    "unwanted with entries": ({"is_wanted": put(0, 1, False)}, "head_size", "masked"),
    "unwanted with a head": (
        {
            "head_size": put(0, 0, 1),
            "ids": lambda rows: rows[0].insert(0, 3),
            "logprobs": lambda rows: rows[0].insert(0, -1.0),
        },
        "head_size",
        "masked",
    ),
    "unwanted with a tail": (
        {"tail_size": put(1, 0, 1), "ids": lambda rows: rows[1].insert(0, 3)},
        "head_size",
        "masked",
    ),
    "unwanted with a tail's mass": ({"tail_logprob": put(0, 0, -1.0)}, "tail_logprob", "masked"),
    "unwanted with an entropy": ({"entropy": put(1, 2, 0.5)}, "entropy", "masked"),
    "unwanted with a label's logprob": ({"label_logprob": put(1, 1, -0.5)}, "label_logprob", "masked"),
    "unwanted with a tempered mass": ({"tail_logmass_at_2": put(0, 3, 0.5)}, "tail_logmass_at_2", "masked"),
}


@pytest.mark.parametrize("case", BROKEN_ROWS)
def test_a_broken_rule_is_refused_by_the_name_of_its_column(
    batch: pa.RecordBatch, make: SimpleNamespace, forge: SimpleNamespace, case: str
) -> None:
    identity = make.identity(vocab_size=10, block_size=4, config={"soft_targets": SETTINGS})
    assert_refused(batch, "soft_targets", identity, forge, BROKEN_ROWS[case])


def test_a_cache_with_the_column_is_whole_and_counts_wanted_targets(wanted_cache: Path) -> None:
    assert verify_cache(wanted_cache).problems == ()
    cache = open_cache(wanted_cache)
    assert json.loads((wanted_cache / "plan.json").read_bytes())["format_version"] == 2
    rows = [soft_targets.decode(batch) for batch in cache.record_batches("soft_targets", "train")]
    num_wanted = sum(int(r.is_wanted.sum()) for r in rows if r.is_wanted is not None)
    num_in_one_segment = sum(int(r.is_in_one_segment.sum()) for r in rows)
    assert 20 < num_wanted < num_in_one_segment - 20
    assert sum(shard.num_targets for shard in cache.shards("soft_targets", "train")) == num_wanted
    nll = sum(float(-r.label_logprob[r.is_wanted].astype(np.float64).sum()) for r in rows)
    assert cache.manifest.teacher_perplexity("train") == pytest.approx(np.exp(nll / num_wanted), rel=1e-9)


def test_a_cache_without_the_column_keeps_version_one(make: SimpleNamespace, small_cache: Path, tmp_path: Path) -> None:
    assert json.loads((small_cache / "manifest.json").read_bytes())["format_version"] == 1
    stated = make.cache(tmp_path / "stated", config={"soft_targets": SETTINGS | {"is_wanted": False}})
    assert json.loads((stated / "manifest.json").read_bytes())["format_version"] == 1
    assert (stated / SHARD).read_bytes() == (small_cache / SHARD).read_bytes()


def test_a_reader_of_version_one_asks_for_an_upgrade(wanted_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "FORMAT_VERSION", 1)
    with pytest.raises(FormatVersionError, match="format version 2, this teachonce reads up to 1"):
        open_cache(wanted_cache)


def test_a_split_without_one_wanted_target_has_no_perplexity(make: SimpleNamespace, tmp_path: Path) -> None:
    rows = make.soft_target_rows(4, marks_wanted=True)
    alone = soft_targets.encode(rows, make.identity(config={"soft_targets": SETTINGS}).schema("soft_targets"), 10)
    assert batch_stats(alone.slice(3), "soft_targets").num_targets == 0
    cache = open_cache(
        make.cache(tmp_path / "cache", {"soft_targets": {"train": [4]}}, config={"soft_targets": SETTINGS})
    )
    assert cache.manifest.teacher_perplexity("validation") is None
    assert "only wanted targets" in render_summary(summarize(cache))
    lines = list(render_head(cache, "soft_targets", "train", 4))
    assert lines[-1].startswith("row 3: ")  # no target to show
    assert len(lines) == 4 + batch_stats(alone, "soft_targets").num_targets


def test_its_rows_are_shuffled_with_their_flags(wanted_cache: Path) -> None:
    cache = open_cache(wanted_cache)
    flags = {
        int(row_id): row_flags
        for stored in cache.record_batches("soft_targets", "train")
        for row_id, row_flags in zip(stored["row_id"].to_pylist(), stored["is_wanted"].to_pylist(), strict=True)
    }
    stream = RowStream(cache, "soft_targets", "train", batch_rows=3, seed=1)
    batches = stream.batches()
    for _ in range(stream.num_rows // 3):
        rows = next(batches).rows
        assert rows["is_wanted"].to_pylist() == [flags[row_id] for row_id in rows["row_id"].to_pylist()]


def test_a_shard_holds_the_flags_of_its_own_rows_alone(make: SimpleNamespace, tmp_path: Path) -> None:
    identity = make.identity({"soft_targets": {"train": [7]}}, block_size=5, config={"soft_targets": SETTINGS})
    key = ShardKey(kind="soft_targets", split="train", index=0, num_shards=1)
    rows = make.soft_target_rows(7, block_size=5, marks_wanted=True)
    whole = soft_targets.encode(rows, identity.schema("soft_targets"), 10)
    write_shard(tmp_path, identity, key, 0, [whole.slice(0, 4), whole.slice(4)])
    for batch, num_rows in zip(read_batches(tmp_path, key.path), (4, 3), strict=True):
        bits = batch["is_wanted"].values.buffers()[1].to_pybytes()
        assert len(bits) == -(-num_rows * 5 // 8)
        assert bits[-1] >> num_rows * 5 % 8 == 0
        assert (
            batch["is_wanted"].to_pylist() == whole.slice(0 if num_rows == 4 else 4, num_rows)["is_wanted"].to_pylist()
        )


def test_compact_keeps_the_column_and_the_version(wanted_cache: Path, tmp_path: Path) -> None:
    compacted = compact(wanted_cache, tmp_path / "compact", zstd_level=19)
    assert verify_cache(tmp_path / "compact").problems == ()
    assert compacted.identity == open_cache(wanted_cache).identity


def test_packed_and_pushed_it_comes_back(wanted_cache: Path, tmp_path: Path) -> None:
    pack(wanted_cache, tmp_path / "cache.tar.zst")
    unpack(tmp_path / "cache.tar.zst", tmp_path / "unpacked")
    push(wanted_cache, "memory://wanted/cache")
    pull("memory://wanted/cache", tmp_path / "pulled")
    for copy in ("unpacked", "pulled"):
        assert verify_cache(tmp_path / copy).problems == ()
        assert open_cache(tmp_path / copy).manifest == open_cache(wanted_cache).manifest


def test_the_library_datasets_reads_the_flags(wanted_cache: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset(str(wanted_cache), "soft_targets", split="train", cache_dir=str(tmp_path / "hf"))
    flags = [
        row
        for b in open_cache(wanted_cache).record_batches("soft_targets", "train")
        for row in b["is_wanted"].to_pylist()
    ]
    assert rows["is_wanted"][:] == flags


def test_merge_joins_caches_with_the_column_and_refuses_one_without(
    wanted_cache: Path, make: SimpleNamespace, tmp_path: Path
) -> None:
    def other(name: str, settings: dict[str, Any], seed: int) -> Path:
        data = make.identity().data | {"fingerprint": str(seed) * 64}
        rows, config = {"soft_targets": {"train": [6]}}, {"soft_targets": settings}
        written: Path = make.cache(tmp_path / name, rows, seed=seed, data=data, config=config)
        return written

    merged = merge([wanted_cache, other("alike", SETTINGS, 1)], tmp_path / "merged")
    assert verify_cache(merged.path).problems == ()
    assert soft_targets.has_is_wanted(merged.identity.config["soft_targets"])
    plain = other("plain", {"top_k": 3, "tail_weight": 0.25}, 2)
    for order in ([wanted_cache, plain], [plain, wanted_cache]):
        with pytest.raises(MergeError, match=r"config\.soft_targets\.is_wanted"):
            merge(order, tmp_path / "refused")
        assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("column", "edit", "error"),
    [
        ("is_wanted", lambda rows: rows.__setitem__(0, [True] * 6), RowError),
        ("is_wanted", lambda rows: rows.__setitem__(0, [False] * 6), RowError),
        ("is_wanted", lambda rows: rows[1].__setitem__(0, None), ShardFormatError),
        ("entropy", lambda rows: rows.__setitem__(3, [0.5] * 6), RowError),
    ],
)
def test_a_hostile_shard_is_refused_by_every_reader(
    wanted_cache: Path, forge: SimpleNamespace, column: str, edit: Any, error: type[CacheError]
) -> None:
    first, *others = read_batches(wanted_cache, SHARD)
    forge.replace_shard(wanted_cache, SHARD, first.schema, [forge.column(first, column, edit), *others])
    (problem,) = verify_cache(wanted_cache).problems
    assert type(problem) is error
    cache = open_cache(wanted_cache)
    with pytest.raises(error):
        list(cache.record_batches("soft_targets", "train"))
    stream = RowStream(cache, "soft_targets", "train", batch_rows=4, seed=0)
    with pytest.raises(error):
        list(itertools.islice(stream.batches(), 6))


def test_a_column_that_is_not_promised_is_refused(wanted_cache: Path, forge: SimpleNamespace) -> None:
    def deny(content: dict[str, Any]) -> None:
        content["format_version"] = 1
        content["config"]["soft_targets"]["is_wanted"] = False

    forge.identity(wanted_cache, deny)
    with pytest.raises(ShardFormatError, match="is_wanted"):
        list(open_cache(wanted_cache).record_batches("soft_targets", "train"))
