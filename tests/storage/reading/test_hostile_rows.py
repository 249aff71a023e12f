"""Rows that break a rule of their kind, in shards whose checksums are right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage.errors import RowError
from tests.storage.hostile import Batches, footer_lists_first_batch_twice
from tests.storage.reading.forging import shard_batches, shard_bytes, values
from tests.storage.reading.readers import ROWS, Case, cases


def at(row: int, place: int, value: object) -> Callable[[list[Any]], None]:
    """Set one element of one row."""
    return lambda rows: rows[row].__setitem__(place, value)


def every(value: object) -> Callable[[list[Any]], None]:
    """Set every row."""
    return lambda rows: rows.__setitem__(slice(None), [value] * len(rows))


def long_row(cache_dir: Path, forge: SimpleNamespace) -> None:
    """One completion longer than the settings allow."""

    def change(batches: Batches) -> Batches:
        batch = forge.column(batches[0], "completion_ids", lambda rows: rows.__setitem__(0, [1] * 500))
        return [
            forge.column(batch, "completion_logprobs", lambda rows: rows.__setitem__(0, [-1.0] * 500)),
            *batches[1:],
        ]

    shard_batches("samples", change)(cache_dir, forge)


def wide_head(cache_dir: Path, forge: SimpleNamespace) -> None:
    """One head of all 50 entries, against which a student would pad all others."""

    def change(batches: Batches) -> Batches:
        rows = batches[0].to_pylist()
        row = rows[1]
        row["ids"] = [*range(50), *row["ids"][row["head_size"][0] + row["tail_size"][0] :]]
        row["logprobs"] = [float(np.float16(-np.log(50)))] * 50 + row["logprobs"][row["head_size"][0] :]
        row["head_size"][0], row["tail_size"][0], row["tail_logprob"][0] = 50, 0, -np.inf
        return [pa.RecordBatch.from_pylist(rows, schema=batches[0].schema), *batches[1:]]

    shard_batches("soft_targets", change)(cache_dir, forge)


def other_entries(cache_dir: Path, forge: SimpleNamespace) -> None:
    """A masked target that has entries: those of its neighbour."""

    def change(batches: Batches) -> Batches:
        swap: Callable[[list[Any]], None] = lambda rows: rows[0].insert(0, rows[0].pop(1))  # noqa: E731
        batch = batches[0]
        for name in ("head_size", "tail_size"):
            batch = forge.column(batch, name, swap)
        return [batch, *batches[1:]]

    shard_batches("soft_targets", change)(cache_dir, forge)


BROKEN_ROWS = {
    "ids outside the vocabulary": values("soft_targets", "ids", lambda rows: rows[0].__setitem__(2, 50)),
    "blocks outside the vocabulary": values("soft_targets", "input_ids", at(0, 3, 65535)),
    "labels outside the vocabulary": values("soft_targets", "input_ids", at(1, 6, 50)),
    "ids twice in a head": values("soft_targets", "ids", lambda rows: rows[0].__setitem__(1, rows[0][0])),
    "a logprob that is no number": values("soft_targets", "logprobs", at(0, 0, float("nan"))),
    "a logprob without end": values("soft_targets", "logprobs", at(0, 0, float("-inf"))),
    "a logprob above 0": values("soft_targets", "logprobs", at(0, 0, 0.5)),
    "a tail above mass 1": values("soft_targets", "tail_logprob", at(1, 0, 0.5)),
    "a tail that is no number": values("soft_targets", "tail_logprob", at(1, 0, float("nan"))),
    "mass above 1": values("soft_targets", "tail_logprob", at(1, 0, 0.0)),
    "mass below 1": values("soft_targets", "tail_logprob", every([float("-inf")] * 6)),
    "entropy below 0": values("soft_targets", "entropy", at(1, 0, -1.0)),
    "entropy above log V": values("soft_targets", "entropy", at(1, 0, 4.0)),
    "entropy that is no number": values("soft_targets", "entropy", at(1, 0, float("nan"))),
    "a label without probability": values("soft_targets", "label_logprob", at(1, 0, float("-inf"))),
    "a tempered tail without end": values("soft_targets", "tail_logmass_at_2", at(1, 0, float("inf"))),
    "heads that overflow": values("soft_targets", "head_size", at(1, 0, 65535)),
    "tails that overflow": values("soft_targets", "tail_size", every([65535] * 6)),
    "a masked target with entries": other_entries,
    "segments beyond the block": values("soft_targets", "segment_lengths", at(1, 0, 8)),
    "segments of 2^32 tokens": values("soft_targets", "segment_lengths", at(1, 0, 2**32 - 1)),
    "segments of nothing": values("soft_targets", "segment_lengths", lambda rows: rows[1].append(0)),
    "a head of the whole vocabulary": wide_head,
    "row ids elsewhere": values("soft_targets", "row_id", lambda ids: ids.__setitem__(slice(None), [5, 6, 7, 8])),
    "row ids that repeat": values("soft_targets", "row_id", every(0)),
    "the first batch twice": shard_bytes("soft_targets", footer_lists_first_batch_twice),
    "a prompt of nothing": values("samples", "prompt_ids", lambda rows: rows[0].clear()),
    "a completion of nothing": values("samples", "completion_ids", lambda rows: rows[0].clear()),
    "a completion outside the vocabulary": values("samples", "completion_ids", at(0, 0, 50)),
    "a completion beyond its settings": long_row,
    "a completion of more logprobs": values("samples", "completion_logprobs", lambda rows: rows[0].append(-1.0)),
    "a completion's logprob above 0": values("samples", "completion_logprobs", at(0, 0, 1.0)),
    "a reason of nobody": values("samples", "finish_reason", lambda reasons: reasons.__setitem__(0, "rm -rf")),
    "a beam's prompt of nothing": values("beams", "prompt_ids", lambda rows: rows[0].clear()),
    "a beam's prompt beyond its settings": values("beams", "prompt_ids", lambda rows: rows[0].extend([1] * 500)),
    "candidates of other lengths": values("beams", "candidate_lengths", at(1, 0, 9)),
    "candidates of 2^32 tokens": values("beams", "candidate_lengths", at(0, 0, 2**32 - 1)),
    "no candidates": values("beams", "candidate_lengths", lambda rows: rows[0].clear()),
    "candidates not best first": values("beams", "scores", lambda rows: rows[2].reverse()),
    "a score that is no number": values("beams", "scores", at(0, 0, float("nan"))),
    "a score above 0": values("beams", "scores", at(0, 0, 1.0)),
    "a score more": values("beams", "scores", lambda rows: rows[0].append(-9.0)),
    "a candidate's reason of nobody": values("beams", "finish_reasons", at(0, 0, "")),
    "a candidate twice": values("beams", "candidate_ids", every([7] * 20)),
}  # fmt: skip
CASES = cases(RowError, BROKEN_ROWS, ROWS)


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_cache_is_refused(require_refused: Callable[[Case], None], name: str) -> None:
    require_refused(CASES[name])
