from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from storage.errors import RowError
from storage.rows import beams
from storage.rows.beams import BeamRow, Candidate
from storage.shards.shard import batch_stats
from tests.storage.broken_rows import BrokenRow, Edit, assert_refused


def candidate(score: float, *ids: int) -> Candidate:
    return Candidate(
        candidate_ids=np.array(ids), score=score, sum_logprob=score * len(ids), finish_reason="stop", text=str(ids)
    )


@pytest.fixture
def batch() -> pa.RecordBatch:
    """Two prompts with two candidates each; the second prompt's best beats the first prompt's."""
    rows = [
        BeamRow(
            row_id=7,
            prompt_id=3,
            prompt_ids=np.array([1, 2]),
            candidates=[candidate(-1.0, 4, 5, 6), candidate(-2.0, 4)],
        ),
        BeamRow(
            row_id=8, prompt_id=4, prompt_ids=np.array([1]), candidates=[candidate(-0.5, 9), candidate(-0.5, 0, 1)]
        ),
    ]
    return beams.encode(rows, beams.schema(10))


def assert_equal_rows(found: list[BeamRow], expected: list[BeamRow]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.row_id, one.prompt_id) == (other.row_id, other.prompt_id)
        np.testing.assert_array_equal(one.prompt_ids, other.prompt_ids)
        assert len(one.candidates) == len(other.candidates)
        for a, b in zip(one.candidates, other.candidates, strict=True):
            np.testing.assert_array_equal(a.candidate_ids, b.candidate_ids)
            assert (a.score, a.finish_reason, a.text) == (b.score, b.finish_reason, b.text)
            assert a.sum_logprob == pytest.approx(b.sum_logprob, rel=1e-6)


@pytest.mark.parametrize(("vocab_size", "token"), [(50, np.uint16), (65535, np.uint16), (65536, np.uint32)])
def test_decode_returns_what_was_encoded(make: SimpleNamespace, vocab_size: int, token: type) -> None:
    rows = make.beam_rows(6, first_row_id=2, vocab_size=vocab_size)
    rows[3] = dataclasses.replace(rows[3], candidates=[candidate(-1.0, vocab_size - 1, 0)])
    batch = beams.encode(rows, beams.schema(vocab_size))
    batch.validate(full=True)
    beams.check(batch, vocab_size, "here")
    decoded = beams.decode(batch)
    assert_equal_rows(decoded, rows)
    assert decoded[0].candidates[0].candidate_ids.dtype == token


@pytest.mark.parametrize(("start", "length"), [(0, 1), (1, 1), (2, 3), (5, 1), (0, 6), (3, 0)])
def test_a_slice_of_a_batch_decodes_to_its_own_rows(make: SimpleNamespace, start: int, length: int) -> None:
    rows = make.beam_rows(6)
    part = beams.encode(rows, beams.schema(50)).slice(start, length)
    beams.check(part, 50, "here")
    chosen = rows[start : start + length]
    assert_equal_rows(beams.decode(part), chosen)
    assert batch_stats(part, "beams").num_targets == sum(len(row.candidates) for row in chosen)


def test_statistics_count_tokens_and_candidates(batch: pa.RecordBatch) -> None:
    stats = batch_stats(batch, "beams")
    assert (stats.num_tokens, stats.num_targets) == (10, 4)


def at(row: int, place: int, value: object) -> Edit:
    return lambda rows: rows[row].__setitem__(place, value)


def clear(row: int) -> Edit:
    return lambda rows: rows[row].clear()


PER_CANDIDATE = ("candidate_lengths", "scores", "sum_logprobs", "finish_reasons", "texts")
BROKEN_ROWS: dict[str, BrokenRow] = {
    "prompt outside the vocabulary": ({"prompt_ids": at(1, 0, 10)}, "prompt_ids", "vocabulary of 10"),
    "candidate outside the vocabulary": ({"candidate_ids": at(1, 2, 10)}, "candidate_ids", "vocabulary of 10"),
    "empty prompt": ({"prompt_ids": clear(1)}, "prompt_ids", "empty"),
    "no candidates": ({name: clear(1) for name in (*PER_CANDIDATE, "candidate_ids")}, "candidate_lengths", "without"),
    "empty candidate": (
        {"candidate_lengths": at(0, 1, 0), "candidate_ids": lambda rows: rows[0].pop()},
        "candidate_lengths",
        "empty candidate",
    ),
    "candidate longer than its ids": ({"candidate_lengths": at(0, 1, 2)}, "candidate_ids", "sum of candidate_lengths"),
    "ids in the wrong row": (
        {"candidate_ids": lambda rows: rows[0].append(rows[1].pop())},
        "candidate_ids",
        "sum of candidate_lengths",
    ),
    "length that wraps around": (
        {"candidate_lengths": lambda rows: rows[0].__setitem__(slice(None), [2**32 - 1, 5])},
        "candidate_ids",
        "sum of candidate_lengths",
    ),
    "a score too few": ({"scores": lambda rows: rows[1].pop()}, "scores", "per candidate"),
    "a score in the wrong row": ({"scores": lambda rows: rows[1].append(rows[0].pop())}, "scores", "per candidate"),
    "a sum too many": ({"sum_logprobs": lambda rows: rows[0].append(-1.0)}, "sum_logprobs", "per candidate"),
    "a reason too few": ({"finish_reasons": lambda rows: rows[0].pop()}, "finish_reasons", "per candidate"),
    "a text too few": ({"texts": lambda rows: rows[0].pop()}, "texts", "per candidate"),
    "score NaN": ({"scores": at(0, 1, float("nan"))}, "scores", "finite"),
    "score minus infinity": ({"scores": at(0, 1, float("-inf"))}, "scores", "finite"),
    "score positive": ({"scores": at(0, 0, 0.1)}, "scores", "≤ 0"),
    "sum NaN": ({"sum_logprobs": at(0, 1, float("nan"))}, "sum_logprobs", "finite"),
    "sum positive": ({"sum_logprobs": at(0, 0, 0.1)}, "sum_logprobs", "≤ 0"),
    "not best first": ({"scores": at(0, 1, -0.9)}, "scores", "best first"),
    "unknown finish reason": ({"finish_reasons": at(1, 1, "eos")}, "finish_reasons", "stop, length"),
    "row ids skip one": ({"row_id": lambda rows: rows.__setitem__(1, 9)}, "row_id", "count up"),
}


@pytest.mark.parametrize("case", BROKEN_ROWS)
def test_a_broken_rule_is_refused_by_the_name_of_its_column(
    batch: pa.RecordBatch, make: SimpleNamespace, forge: SimpleNamespace, case: str
) -> None:
    assert_refused(batch, "beams", make.identity(vocab_size=10), forge, BROKEN_ROWS[case])


@pytest.mark.parametrize("column", ["prompt_ids", "candidate_ids"])
def test_ids_too_large_for_their_type_are_not_wrapped(make: SimpleNamespace, column: str) -> None:
    row = make.beam_rows(1)[0]
    too_large = np.array([65536 + 3])
    if column == "prompt_ids":
        row = dataclasses.replace(row, prompt_ids=too_large)
    else:
        row = dataclasses.replace(row, candidates=[dataclasses.replace(row.candidates[0], candidate_ids=too_large)])
    with pytest.raises((ValueError, OverflowError)):
        beams.check(beams.encode([row], beams.schema(50)), 50, "here")


def test_two_candidates_alike_are_refused(batch: pa.RecordBatch, forge: SimpleNamespace) -> None:
    batch = forge.column(batch, "candidate_ids", lambda rows: rows[1].__setitem__(slice(None), [9, 9]))
    batch = forge.column(batch, "candidate_lengths", lambda rows: rows[1].__setitem__(slice(None), [1, 1]))
    with pytest.raises(RowError, match="candidate_ids"):
        beams.check(batch, 10, "here")
