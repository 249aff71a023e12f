"""Soft targets without entropy or label_logprob, because nobody knew them. A cache without one has version 3."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from storage import RowStream, open_cache, verify_cache
from storage.errors import FormatVersionError, RecordError, ShardFormatError
from storage.reading.inspection import render_head, render_summary, summarize
from storage.records import identity as identities
from storage.rows import soft_targets
from storage.sharing.archive import pack, unpack
from storage.sharing.compaction import compact
from storage.sharing.merging import merge

SETTINGS = {"top_k": 3, "tail_weight": 0.25}
KNOWN = ("entropy", "label_logprob")
SOME = [["entropy"], ["label_logprob"], ["entropy", "label_logprob"]]


@pytest.fixture(params=SOME, ids="+".join)
def unknown(request: pytest.FixtureRequest) -> list[str]:
    return list(request.param)


@pytest.fixture
def lacking(make: SimpleNamespace, tmp_path: Path, unknown: list[str]) -> Path:
    path: Path = make.cache(tmp_path / "lacking", config={"soft_targets": SETTINGS | {"unknown_columns": unknown}})
    return path


def test_the_columns_are_not_there_and_the_version_says_so(lacking: Path, unknown: list[str]) -> None:
    assert verify_cache(lacking).problems == ()
    cache = open_cache(lacking)
    assert json.loads((lacking / "plan.json").read_bytes())["format_version"] == 3
    assert cache.identity.unknown_columns == tuple(unknown)
    (batch, *_) = cache.record_batches("soft_targets", "train")
    assert [name for name in KNOWN if name not in batch.schema.names] == unknown
    rows = soft_targets.decode(batch)
    assert [name for name in KNOWN if getattr(rows, name) is None] == unknown
    assert soft_targets.encode(rows, batch.schema, 10).equals(batch)
    assert next(RowStream(cache, "soft_targets", "train", batch_rows=3, seed=0).batches()).rows.num_rows == 3


def test_what_is_not_known_is_null_and_said(lacking: Path, unknown: list[str]) -> None:
    cache = open_cache(lacking)
    manifest = json.loads((lacking / "manifest.json").read_bytes())
    found = {"entropy": manifest["teacher_entropy_nats"], "label_logprob": manifest["teacher_perplexity"]}
    for name in KNOWN:
        assert (found[name]["train"] is None) == (name in unknown)
    for shard in cache.shards("soft_targets", "train"):
        assert (shard.entropy_sum_nats == 0) == ("entropy" in unknown)
        assert (shard.label_nll_sum_nats == 0) == ("label_logprob" in unknown)
    summary = render_summary(summarize(cache))
    assert ("the teacher's entropy" in summary) == ("entropy" in unknown)
    assert ("the teacher's probability of the next token" in summary) == ("label_logprob" in unknown)
    assert "mean entropy not known" in summary or unknown != ["entropy"]
    (line, *_) = [line for line in render_head(cache, "soft_targets", "train", 1) if "→" in line]
    assert ("entropy not known" in line) == ("entropy" in unknown)
    assert (" ? |" in line) == ("label_logprob" in unknown)


def test_copies_keep_it(lacking: Path, unknown: list[str], tmp_path: Path, make: SimpleNamespace) -> None:
    pack(lacking, tmp_path / "cache.tar.zst")
    unpack(tmp_path / "cache.tar.zst", tmp_path / "unpacked")
    compact(lacking, tmp_path / "compacted")
    for copy in (tmp_path / "unpacked", tmp_path / "compacted"):
        assert verify_cache(copy).problems == ()
        assert open_cache(copy).identity.unknown_columns == tuple(unknown)


def test_a_reader_of_version_two_asks_for_an_upgrade(lacking: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "FORMAT_VERSION", 2)
    with pytest.raises(FormatVersionError, match="format version 3, this teachonce reads up to 2"):
        open_cache(lacking)


@pytest.mark.parametrize(
    "stated", ["entropy", ["tail_logprob"], ["label_logprob", "entropy"], ["entropy", "entropy"], 1, None, {}]
)
def test_settings_that_are_not_so_are_refused(small_cache: Path, forge: SimpleNamespace, stated: object) -> None:
    def change(content: dict[str, Any]) -> None:
        content["config"]["soft_targets"]["unknown_columns"] = stated

    forge.identity(small_cache, change)
    with pytest.raises(RecordError, match=r"unknown_columns|format_version"):
        open_cache(small_cache)


def test_a_column_that_is_there_though_it_is_called_unknown_is_refused(
    small_cache: Path, forge: SimpleNamespace
) -> None:
    def change(content: dict[str, Any]) -> None:
        content["config"]["soft_targets"]["unknown_columns"] = ["entropy"]
        content["format_version"] = 3
        if "teacher_entropy_nats" in content:
            content["teacher_entropy_nats"] = dict.fromkeys(content["teacher_entropy_nats"])

    forge.identity(small_cache, change)
    cache = open_cache(small_cache)
    with pytest.raises(ShardFormatError, match="its columns are"):
        next(cache.record_batches("soft_targets", "train"))


def test_a_cache_that_lacks_nothing_keeps_its_version(make: SimpleNamespace, small_cache: Path, tmp_path: Path) -> None:
    stated = make.cache(tmp_path / "stated", config={"soft_targets": SETTINGS | {"unknown_columns": []}})
    assert json.loads((stated / "manifest.json").read_bytes())["format_version"] == 1
    shard = "soft_targets/train-00000-of-00003.arrow"
    assert (stated / shard).read_bytes() == (small_cache / shard).read_bytes()


def test_caches_with_and_without_are_not_merged(make: SimpleNamespace, lacking: Path, tmp_path: Path) -> None:
    known = make.cache(tmp_path / "known", config={"soft_targets": SETTINGS})
    with pytest.raises(Exception, match="unknown_columns"):
        merge([known, lacking], tmp_path / "merged")
