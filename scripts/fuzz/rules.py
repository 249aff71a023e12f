"""Rules that all data read from a cache must keep, checked without any code of storage."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

KINDS = ("soft_targets", "samples", "beams")


def assert_manifest_rules(manifest: Any) -> None:
    """Assert that the shards are the planned ones, that their rows are consecutive, and that numbers are in range.

    The rows of a merged cache need not be consecutive.
    """
    identity = manifest.identity
    assert 1 <= identity.vocab_size <= 2**31
    assert 1 <= identity.block_size <= 2**20
    assert 1 <= identity.record_batch_rows <= 2**16
    assert all(math.isfinite(t) and t > 0 for t in identity.temperatures)
    planned = [
        f"{kind}/{split}-{index:05d}-of-{count:05d}.arrow"
        for kind in KINDS
        for split in ("train", "validation")
        for count in [identity.planned_shards.get(kind, {}).get(split, 0)]
        for index in range(count)
    ]
    assert [shard.path for shard in manifest.shards] == planned
    rows_before: Counter[str] = Counter()
    for shard in manifest.shards:
        place = shard.path.partition("-")[0]
        assert shard.first_row_id == rows_before[place] or "sources" in identity.data
        rows_before[place] += shard.num_rows
        assert shard.num_rows >= 0
        assert re.fullmatch("[0-9a-f]{64}", shard.sha256)
    assert max(rows_before.values(), default=0) < 2**63
    tail_weight = identity.config.get("soft_targets", {}).get("tail_weight")
    assert tail_weight is None or 0 < tail_weight < 1


def assert_row_rules(batch: Any, kind: str, vocab_size: int) -> None:
    """Assert the rules of a row (storage/FORMAT.md) for every row, with plain loops."""
    check = {"soft_targets": _assert_block, "samples": _assert_sample, "beams": _assert_beam}[kind]
    for row in batch.to_pylist():
        check(row, vocab_size)


def _assert_block(row: dict[str, Any], vocab_size: int) -> None:
    lengths = row["segment_lengths"]
    assert min(lengths) > 0
    assert sum(lengths) == len(row["input_ids"])
    assert max(row["input_ids"]) < vocab_size
    segments = [segment for segment, length in enumerate(lengths) for _ in range(length)]
    is_wanted = row.get("is_wanted", [True] * len(row["head_size"]))
    ids, logprobs = iter(row["ids"]), iter(row["logprobs"])
    for t in range(len(segments) - 1):
        head = [next(ids) for _ in range(row["head_size"][t])]
        tail = [next(ids) for _ in range(row["tail_size"][t])]
        is_valid = segments[t] == segments[t + 1] and is_wanted[t]
        assert is_valid or not head + tail
        if "is_wanted" in row:
            assert is_valid == is_wanted[t]
            assert (
                is_valid or row["tail_logprob"][t] == _value(row, "entropy", t) == _value(row, "label_logprob", t) == 0
            )
        assert head == sorted(head)
        assert tail == sorted(tail)
        assert len({*head, *tail}) == len(head + tail)
        assert all(i < vocab_size for i in head + tail)
        head_logprobs = [next(logprobs) for _ in head]
        assert all(-math.inf < logprob <= 0 for logprob in head_logprobs)
        assert row["tail_logprob"][t] <= 0
        assert -math.inf < _value(row, "label_logprob", t) <= 0
        assert 0 <= _value(row, "entropy", t) <= math.log(vocab_size) * 1.01 + 0.01
        if is_valid:
            mass = sum(map(math.exp, head_logprobs)) + math.exp(row["tail_logprob"][t])
            assert abs(mass - 1) < 0.1, mass
    assert next(ids, None) is None
    assert next(logprobs, None) is None


def _value(row: dict[str, Any], name: str, t: int) -> float:
    """Return a value per target; 0 from a column that a cache of version 3 lacks."""
    return float(row[name][t]) if name in row else 0.0


def _assert_sample(row: dict[str, Any], vocab_size: int) -> None:
    assert row["prompt_ids"]
    assert row["completion_ids"]
    assert max(row["prompt_ids"] + row["completion_ids"]) < vocab_size
    assert len(row["completion_logprobs"]) == len(row["completion_ids"])
    assert all(-math.inf < logprob <= 0 for logprob in row["completion_logprobs"])
    assert row["finish_reason"] in ("stop", "length")


def _assert_beam(row: dict[str, Any], vocab_size: int) -> None:
    lengths = row["candidate_lengths"]
    assert row["prompt_ids"]
    assert min(lengths) > 0
    assert sum(lengths) == len(row["candidate_ids"])
    assert max(row["prompt_ids"] + row["candidate_ids"]) < vocab_size
    assert all(len(row[name]) == len(lengths) for name in ("scores", "sum_logprobs", "finish_reasons", "texts"))
    assert row["scores"] == sorted(row["scores"], reverse=True)
    assert all(-math.inf < value <= 0 for value in row["scores"] + row["sum_logprobs"])
    assert {*row["finish_reasons"]} <= {"stop", "length"}
    ids = iter(row["candidate_ids"])
    assert len({tuple(next(ids) for _ in range(length)) for length in lengths}) == len(lengths)
