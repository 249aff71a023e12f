"""A further kind takes part in everything by its line in the table alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from storage import RowStream, open_cache, verify_cache
from storage.errors import RecordError, RowError
from storage.reading.inspection import render_head, render_summary, summarize
from storage.records.commits import read_plan, write_plan
from storage.records.dataset_card import dataset_card
from storage.records.identity import CacheIdentity
from storage.report.cache_page import cache_page
from storage.rows.kinds import KINDS
from tests.storage.ratings import RATINGS, Ratings, write_rated_cache


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch, make: SimpleNamespace) -> CacheIdentity:
    monkeypatch.setitem(KINDS, "ratings", Ratings())
    made: CacheIdentity = make.identity({"ratings": {"train": [5]}}, config={"ratings": {"most_stars": 5}})
    return made


@pytest.fixture
def rated_cache(tmp_path: Path, identity: CacheIdentity) -> Path:
    return write_rated_cache(tmp_path, identity)


def test_its_rows_are_written_verified_streamed_and_counted(rated_cache: Path) -> None:
    assert verify_cache(rated_cache).problems == ()
    cache = open_cache(rated_cache)
    assert cache.held_kinds("train") == ["ratings"]
    (record,) = cache.shards("ratings", "train")
    assert (record.num_rows, record.num_tokens, record.num_targets) == (5, 9, 5)
    batch = next(iter(RowStream(cache, "ratings", "train", batch_rows=5, seed=0).batches()))
    assert sorted(batch.rows.column("rating").to_pylist()) == sorted(RATINGS)


def test_its_rows_are_shown_and_described(rated_cache: Path, identity: CacheIdentity) -> None:
    cache = open_cache(rated_cache)
    assert list(render_head(cache, "ratings", "train", 2)) == ["row 0: 2 tokens ", "row 1: 1 tokens *****"]
    summary = summarize(cache)
    assert summary["kinds"]["ratings"]["train"]["num_rows"] == 5
    assert "ratings train" in render_summary(summary)
    assert b"5 rated prompts" in cache_page(cache, "cache")
    assert "| ratings | train | 5 |" in dataset_card(identity, cache.manifest.shards)


def test_its_rows_are_checked_by_its_rules_and_by_the_caches_settings(tmp_path: Path, identity: CacheIdentity) -> None:
    with pytest.raises(RowError, match="too many stars"):
        write_rated_cache(tmp_path, identity, [0, 0, 0, 0, 6])
    identity.data["longest_prompt_tokens"] = {"ratings": 2}
    with pytest.raises(RowError, match="has 3 tokens where the cache's settings allow 2"):
        write_rated_cache(tmp_path, identity)


@pytest.mark.parametrize(
    ("where", "setting", "value"),
    [("config", "ratings", {"most_stars": 6}), ("data", "longest_prompt_tokens", {"ratings": -1})],
)
def test_its_settings_are_checked(
    tmp_path: Path, identity: CacheIdentity, where: str, setting: str, value: object
) -> None:
    getattr(identity, where)[setting] = value
    write_plan(tmp_path, identity)
    with pytest.raises(RecordError, match=f"{where}.{setting}"):
        read_plan(tmp_path)
