"""The quick forms of the rules for soft targets against their plain meaning, on every float16 and where types end."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from storage.errors import RowError
from storage.rows import soft_target_rules, soft_targets
from storage.rows.soft_targets import SoftTargetRows

EVERY_FLOAT16 = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def block(head_size: NDArray[np.int64], tail_size: NDArray[np.int64], ids: NDArray[np.uint16]) -> SoftTargetRows:
    """One row of one document, with heads of mass 1 in equal parts and nothing left for the tail."""
    nothing = np.zeros((1, len(head_size)), dtype=np.float16)
    return SoftTargetRows(
        row_id=np.array([0]),
        input_ids=np.zeros((1, len(head_size) + 1), dtype=np.uint16),
        segment_lengths=[np.array([len(head_size) + 1])],
        head_size=head_size[None],
        tail_size=tail_size[None],
        ids=ids,
        logprobs=np.repeat(-np.log(np.maximum(head_size, 1)), head_size).astype(np.float16),
        tail_logprob=np.full_like(nothing, -np.inf),
        entropy=nothing,
        label_logprob=nothing.copy(),
        tempered_tail_logmass={2.0: nothing.copy()},
    )


def refused_column(rows: SoftTargetRows, vocab_size: int) -> str | None:
    """Of the rule that the rows break."""
    batch: pa.RecordBatch = soft_targets.encode(
        rows, soft_targets.schema(vocab_size, rows.head_size.shape[1], (1.0, 2.0)), 10
    )
    try:
        soft_target_rules.check(batch, vocab_size, "here")
    except RowError as error:
        return error.column
    return None


def is_allowed(column: str, value: float, vocab_size: int) -> bool:
    """The rule in words: finite and ≤ 0; ≤ 0; not NaN and not +∞; from 0 to log V and a little more."""
    match column:
        case "logprobs" | "label_logprob":
            return math.isfinite(value) and value <= 0
        case "tail_logprob":
            return value <= 0
        case "tail_logmass_at_2":
            return value < math.inf
        case _:
            return 0 <= value <= math.log(vocab_size) * 1.001 + 1e-3


@pytest.mark.parametrize("column", ["logprobs", "tail_logprob", "label_logprob", "tail_logmass_at_2", "entropy"])
@pytest.mark.parametrize("vocab_size", [3, 50_257])
def test_each_float16_is_allowed_as_the_rule_says(column: str, vocab_size: int) -> None:
    """Allowed ones pass all together; each of those beside the bounds is judged alone."""
    is_right = np.array([is_allowed(column, value, vocab_size) for value in EVERY_FLOAT16.tolist()])
    assert 100 < is_right.sum() < 65_000
    soft_target_rules._check_values(with_value(column, EVERY_FLOAT16[is_right]), vocab_size, "here")
    bounds = [0, *np.flatnonzero(is_right[1:] != is_right[:-1])]
    beside = {int(bits) % (1 << 16) for bound in bounds for bits in range(bound - 2, bound + 4)}
    for bits in beside | set(range(0, 1 << 16, 997)):
        rows = with_value(column, np.append(EVERY_FLOAT16[is_right][:9], EVERY_FLOAT16[bits]))
        if is_right[bits]:
            soft_target_rules._check_values(rows, vocab_size, "here")
        else:
            with pytest.raises(RowError) as refused:
                soft_target_rules._check_values(rows, vocab_size, "here")
            assert refused.value.column == column


def with_value(column: str, values: NDArray[np.float16]) -> SoftTargetRows:
    """Rows whose values of one column are these; only the check of values may look at them."""
    rows = block(np.ones(1, dtype=np.int64), np.zeros(1, dtype=np.int64), np.array([2], dtype=np.uint16))
    stated = {"logprobs": rows.logprobs, "tail_logprob": rows.tail_logprob, "label_logprob": rows.label_logprob}
    stated |= {"entropy": rows.entropy, "tail_logmass_at_2": rows.tempered_tail_logmass[2.0]}
    stated[column] = values if column == "logprobs" else values[None]
    tempered = {2.0: stated.pop("tail_logmass_at_2")}
    return SoftTargetRows(
        row_id=rows.row_id, input_ids=rows.input_ids, segment_lengths=rows.segment_lengths, head_size=rows.head_size,
        tail_size=rows.tail_size, ids=rows.ids, tempered_tail_logmass=tempered, **stated,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("num_sorted", [1, 256, 1 << 12])
def test_positions_are_numbered_apart_however_many_are_sorted_together(
    monkeypatch: pytest.MonkeyPatch, num_sorted: int
) -> None:
    """All positions have the same ids, so that numbers which begin again within a stretch would make repeats."""
    monkeypatch.setattr(soft_target_rules, "_SORTED_ENTRIES", num_sorted)
    sizes = np.ones(700, dtype=np.int64)
    ids = np.tile([7, 3], 700).astype(np.uint16)
    assert refused_column(block(sizes, sizes, ids), 10) is None
    for target in (0, 127, 128, 255, 256, 511, 699):
        twice = ids.copy()
        twice[2 * target + 1] = 7
        assert refused_column(block(sizes, sizes, twice), 10) == "ids", target


@pytest.mark.parametrize("head", [1, 2, 1000, 65_534])
def test_the_mass_of_a_head_of_any_size_is_judged(head: int) -> None:
    """Also of heads so large that rounding to few bits moves their mass by more than the tolerance."""
    ids = np.arange(head, dtype=np.uint16)
    rows = block(np.array([head]), np.array([0]), ids)
    assert refused_column(rows, 65_535) is None
    rows.logprobs[:] = 0
    assert refused_column(rows, 65_535) == (None if head == 1 else "tail_logprob")


def test_a_sum_of_masses_is_not_taken_for_1_because_it_overflows() -> None:
    """The largest vocabulary has 2^31 ids, each of probability 1 at most."""
    assert int(soft_target_rules._fixed_point_probs().max()) << 31 < 1 << 63
