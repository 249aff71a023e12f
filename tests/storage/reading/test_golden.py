"""Caches that an earlier teachonce wrote, committed by make_golden.py, read the same for ever: one of each version."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from storage import RowStream, open_cache, verify_cache
from storage.reading.cache import Cache
from storage.rows import beams, samples, soft_targets
from storage.rows.soft_targets import SoftTargetRows
from tests.places import GOLDEN

GOLDEN_EPOCHS = [[1, 3, 0, 4, 2], [1, 2, 4, 0, 3], [0, 1, 4, 2, 3]]
VERSION_2, VERSION_3 = GOLDEN / "version_2", GOLDEN / "version_3"
SCALARS = ("tail_logprob", "entropy", "label_logprob")


@pytest.fixture(scope="module")
def golden() -> Cache:
    return open_cache(GOLDEN / "cache")


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text())
    return content


def test_the_golden_cache_is_whole() -> None:
    found = verify_cache(GOLDEN / "cache")
    assert found.problems == ()
    assert (found.num_shards, found.num_rows) == (3, 9)


def test_the_golden_cache_is_of_version_one(golden: Cache) -> None:
    raw = json.loads((GOLDEN / "cache" / "manifest.json").read_bytes())
    assert (raw["format"], raw["format_version"]) == ("teachonce-cache", 1)
    assert (golden.identity.vocab_size, golden.identity.block_size, golden.identity.record_batch_rows) == (50, 6, 4)
    assert golden.manifest.teacher_perplexity("train") == raw["teacher_perplexity"]["train"]
    assert golden.manifest.teacher_entropy_nats("train") == raw["teacher_entropy_nats"]["train"]


def test_golden_soft_targets_decode_to_the_same_values(golden: Cache, expected: dict[str, Any]) -> None:
    rows = soft_targets.decode(next(golden.record_batches("soft_targets", "train")))
    assert_soft_targets(rows, expected["soft_targets"])
    assert rows.is_wanted is None


def assert_soft_targets(rows: SoftTargetRows, wanted: dict[str, Any]) -> None:
    for name in ("row_id", "input_ids", "head_size", "tail_size", "ids", "logprobs", *SCALARS):
        np.testing.assert_array_equal(getattr(rows, name), np.array(wanted[name]), err_msg=name)
    assert [lengths.tolist() for lengths in rows.segment_lengths] == wanted["segment_lengths"]
    np.testing.assert_array_equal(rows.tempered_tail_logmass[2.0], np.array(wanted["tempered_tail_logmass"]["2.0"]))
    assert len(rows.tempered_tail_logmass) == 1


def test_the_golden_cache_of_version_two_is_whole_and_says_so() -> None:
    found = verify_cache(VERSION_2 / "cache")
    assert (found.problems, found.num_shards, found.num_rows) == ((), 3, 9)
    raw = json.loads((VERSION_2 / "cache" / "manifest.json").read_bytes())
    assert (raw["format_version"], raw["config"]["soft_targets"]["is_wanted"]) == (2, True)


def test_the_golden_cache_of_version_two_decodes_to_the_same_values() -> None:
    cache = open_cache(VERSION_2 / "cache")
    wanted = json.loads((VERSION_2 / "expected.json").read_text())["soft_targets"]
    first, second = cache.record_batches("soft_targets", "train")
    rows = soft_targets.decode(first)
    assert_soft_targets(rows, wanted)
    np.testing.assert_array_equal(rows.is_wanted, np.array(wanted["is_wanted"]))
    np.testing.assert_array_equal(rows.is_valid_target, rows.is_wanted)
    assert rows.is_wanted.any(axis=1).tolist() == [True, True, True, False]
    for batch in (first, second):
        assert soft_targets.encode(soft_targets.decode(batch), batch.schema, 10).equals(batch)


def test_the_golden_cache_of_version_three_lacks_two_columns_and_says_so() -> None:
    found = verify_cache(VERSION_3 / "cache")
    assert (found.problems, found.num_shards, found.num_rows) == ((), 3, 9)
    raw = json.loads((VERSION_3 / "cache" / "manifest.json").read_bytes())
    assert raw["format_version"] == 3
    assert raw["config"]["soft_targets"]["unknown_columns"] == ["entropy", "label_logprob"]
    assert raw["teacher_perplexity"]["train"] is raw["teacher_entropy_nats"]["train"] is None
    wanted = json.loads((VERSION_3 / "expected.json").read_text())["soft_targets"]
    first, second = open_cache(VERSION_3 / "cache").record_batches("soft_targets", "train")
    rows = soft_targets.decode(first)
    assert rows.entropy is rows.label_logprob is None
    for name in ("row_id", "input_ids", "head_size", "tail_size", "ids", "logprobs", "tail_logprob", "is_wanted"):
        np.testing.assert_array_equal(getattr(rows, name), np.array(wanted[name]), err_msg=name)
    for batch in (first, second):
        assert soft_targets.encode(soft_targets.decode(batch), batch.schema, 10).equals(batch)


def test_golden_samples_decode_to_the_same_values(golden: Cache, expected: dict[str, Any]) -> None:
    rows = samples.decode(next(golden.record_batches("samples", "train")))
    for row, wanted in zip(rows, expected["samples"], strict=True):
        found = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(row).items()}
        assert found == wanted


def test_golden_beams_decode_to_the_same_values(golden: Cache, expected: dict[str, Any]) -> None:
    rows = beams.decode(next(golden.record_batches("beams", "train")))
    for row, wanted in zip(rows, expected["beams"], strict=True):
        assert (row.row_id, row.prompt_id, row.prompt_ids.tolist()) == (
            wanted["row_id"],
            wanted["prompt_id"],
            wanted["prompt_ids"],
        )
        for candidate, other in zip(row.candidates, wanted["candidates"], strict=True):
            found = dataclasses.asdict(candidate) | {"candidate_ids": candidate.candidate_ids.tolist()}
            assert found == other | {"sum_logprob": float(np.float32(other["sum_logprob"]))}


def test_golden_rows_encode_to_the_same_columns(golden: Cache) -> None:
    for batch in golden.record_batches("soft_targets", "train"):
        assert soft_targets.encode(soft_targets.decode(batch), batch.schema, 10).equals(batch)
    for batch in golden.record_batches("samples", "train"):
        assert samples.encode(samples.decode(batch), batch.schema).equals(batch)
    for batch in golden.record_batches("beams", "train"):
        assert beams.encode(beams.decode(batch), batch.schema).equals(batch)


def test_the_golden_stream_keeps_its_order(golden: Cache) -> None:
    batches = RowStream(golden, "soft_targets", "train", batch_rows=5, seed=1).batches()
    assert [next(batches).rows.column("row_id").to_pylist() for _ in range(3)] == GOLDEN_EPOCHS
