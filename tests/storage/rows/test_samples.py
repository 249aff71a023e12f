from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from storage.rows import samples
from storage.rows.samples import SampleRow
from storage.shards.shard import batch_stats
from tests.storage.broken_rows import BrokenRow, Edit, assert_refused


@pytest.fixture
def batch(make: SimpleNamespace) -> pa.RecordBatch:
    """Two rows: completions of three and of one token."""
    rows = [
        SampleRow(
            row_id=7,
            prompt_id=3,
            sample_index=0,
            prompt_ids=np.array([1, 2]),
            completion_ids=np.array([9, 8, 7]),
            completion_logprobs=np.array([-1.0, -0.5, 0.0]),
            text="one",
            finish_reason="length",
            seed=1,
        ),
        SampleRow(
            row_id=8,
            prompt_id=3,
            sample_index=1,
            prompt_ids=np.array([1, 2]),
            completion_ids=np.array([0]),
            completion_logprobs=np.array([-2.0]),
            text="",
            finish_reason="stop",
            seed=2**64 - 1,
        ),
    ]
    return samples.encode(rows, samples.schema(10))


def assert_equal_rows(found: list[SampleRow], expected: list[SampleRow]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for field in dataclasses.fields(SampleRow):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), err_msg=field.name)


@pytest.mark.parametrize(("vocab_size", "token"), [(50, np.uint16), (65535, np.uint16), (65536, np.uint32)])
def test_decode_returns_what_was_encoded(make: SimpleNamespace, vocab_size: int, token: type) -> None:
    rows = make.sample_rows(6, first_row_id=2, vocab_size=vocab_size)
    rows[3] = dataclasses.replace(
        rows[3], completion_ids=np.array([vocab_size - 1]), completion_logprobs=np.zeros(1, np.float16)
    )
    batch = samples.encode(rows, samples.schema(vocab_size))
    batch.validate(full=True)
    samples.check(batch, vocab_size, "here")
    decoded = samples.decode(batch)
    assert_equal_rows(decoded, rows)
    assert decoded[0].completion_ids.dtype == token


@pytest.mark.parametrize(("start", "length"), [(0, 1), (1, 1), (2, 3), (5, 1), (0, 6), (3, 0)])
def test_a_slice_of_a_batch_decodes_to_its_own_rows(make: SimpleNamespace, start: int, length: int) -> None:
    rows = make.sample_rows(6)
    part = samples.encode(rows, samples.schema(50)).slice(start, length)
    samples.check(part, 50, "here")
    assert_equal_rows(samples.decode(part), rows[start : start + length])
    expected_tokens = sum(len(row.prompt_ids) + len(row.completion_ids) for row in rows[start : start + length])
    assert batch_stats(part, "samples").num_tokens == expected_tokens


def test_statistics_count_tokens_and_targets(batch: pa.RecordBatch) -> None:
    stats = batch_stats(batch, "samples")
    assert (stats.num_tokens, stats.num_targets) == (8, 4)


def last(value: object) -> Edit:
    """An edit that sets the last element of the last row's list."""
    return lambda rows: rows[-1].__setitem__(-1, value)


def scalar(value: object) -> Edit:
    return lambda rows: rows.__setitem__(-1, value)


BROKEN_ROWS: dict[str, BrokenRow] = {
    "prompt outside the vocabulary": ({"prompt_ids": last(10)}, "prompt_ids", "vocabulary of 10"),
    "completion outside the vocabulary": ({"completion_ids": last(10)}, "completion_ids", "vocabulary of 10"),
    "empty prompt": ({"prompt_ids": lambda rows: rows[0].clear()}, "prompt_ids", "empty"),
    "empty completion": (
        {"completion_ids": lambda rows: rows[1].clear(), "completion_logprobs": lambda rows: rows[1].clear()},
        "completion_ids",
        "empty",
    ),
    "a logprob too few": ({"completion_logprobs": lambda rows: rows[0].pop()}, "completion_logprobs", "lengths differ"),
    "a logprob too many": (
        {"completion_logprobs": lambda rows: rows[1].append(-1.0)},
        "completion_logprobs",
        "lengths differ",
    ),
    "a logprob in the wrong row": (
        {"completion_logprobs": lambda rows: rows[1].append(rows[0].pop())},
        "completion_logprobs",
        "lengths differ",
    ),
    "logprob NaN": ({"completion_logprobs": last(float("nan"))}, "completion_logprobs", "finite"),
    "logprob minus infinity": ({"completion_logprobs": last(float("-inf"))}, "completion_logprobs", "finite"),
    "logprob positive": ({"completion_logprobs": last(0.001)}, "completion_logprobs", "≤ 0"),
    "unknown finish reason": ({"finish_reason": scalar("eos")}, "finish_reason", "stop, length"),
    "empty finish reason": ({"finish_reason": scalar("")}, "finish_reason", "stop, length"),
    "row ids skip one": ({"row_id": scalar(9)}, "row_id", "count up"),
    "row ids repeat": ({"row_id": scalar(7)}, "row_id", "count up"),
}


@pytest.mark.parametrize("case", BROKEN_ROWS)
def test_a_broken_rule_is_refused_by_the_name_of_its_column(
    batch: pa.RecordBatch, make: SimpleNamespace, forge: SimpleNamespace, case: str
) -> None:
    assert_refused(batch, "samples", make.identity(vocab_size=10), forge, BROKEN_ROWS[case])


@pytest.mark.parametrize("column", ["prompt_ids", "completion_ids"])
def test_ids_too_large_for_their_type_are_not_wrapped(make: SimpleNamespace, column: str) -> None:
    row = dataclasses.replace(
        make.sample_rows(1)[0], completion_logprobs=np.zeros(1, np.float16), completion_ids=np.array([4])
    )
    row = dataclasses.replace(row, **{column: np.array([65536 + 3])})
    with pytest.raises((ValueError, OverflowError)):
        samples.check(samples.encode([row], samples.schema(50)), 50, "here")
