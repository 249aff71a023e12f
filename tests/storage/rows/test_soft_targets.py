from __future__ import annotations

import dataclasses
import math
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage.errors import RowError
from storage.rows import soft_target_rules, soft_targets
from storage.rows.segments import valid_targets
from storage.rows.soft_targets import SoftTargetRows
from storage.shards.shard import batch_stats
from tests.storage.broken_rows import BrokenRow, Edit, assert_refused

SCALARS = ("tail_logprob", "entropy", "label_logprob")


@pytest.fixture
def hand_made_rows() -> SoftTargetRows:
    """Two blocks of four targets; in the second, target 1 crosses from one document into the next."""
    valid = np.array([[1, 1, 1, 1], [1, 0, 1, 1]])
    return SoftTargetRows(
        row_id=np.array([4, 5]),
        input_ids=np.array([[0, 1, 2, 3, 4], [9, 8, 7, 6, 5]], dtype=np.uint16),
        segment_lengths=[np.array([5]), np.array([2, 3])],
        head_size=2 * valid,
        tail_size=2 * valid,
        ids=np.tile([3, 6, 0, 9], 7).astype(np.uint16),
        logprobs=np.tile(np.log([0.5, 0.25]), 7),
        tail_logprob=np.where(valid, np.log(0.25), 0.0),
        entropy=np.where(valid, 1.5, 0.0),
        label_logprob=np.where(valid, -2.0, 0.0),
        tempered_tail_logmass={2.0: np.where(valid, 0.75, 0.0)},
    )


@pytest.fixture
def hand_made_batch(hand_made_rows: SoftTargetRows) -> pa.RecordBatch:
    return soft_targets.encode(hand_made_rows, soft_targets.schema(10, 4, (1.0, 2.0)), 10)


def assert_equal_rows(found: SoftTargetRows, expected: SoftTargetRows) -> None:
    for name in ("row_id", "input_ids", "head_size", "tail_size", "ids", *SCALARS):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    np.testing.assert_array_equal(found.logprobs, expected.logprobs)
    assert [s.tolist() for s in found.segment_lengths] == [s.tolist() for s in expected.segment_lengths]
    assert found.tempered_tail_logmass.keys() == expected.tempered_tail_logmass.keys()
    for temperature, logmass in expected.tempered_tail_logmass.items():
        np.testing.assert_array_equal(found.tempered_tail_logmass[temperature], logmass)


@pytest.mark.parametrize(
    ("vocab_size", "block_size", "head", "tail"),
    [
        (50, 6, 3, 2),
        (50, 6, 0, 4),
        (50, 6, 4, 0),
        (50, 6, 0, 0),
        (7, 6, 7, 0),
        (7, 6, 3, 4),
        (1, 3, 1, 0),
        (50, 1, 2, 1),
        (65535, 6, 5, 3),
        (65536, 6, 5, 3),
    ],
)
def test_decode_returns_what_was_encoded(
    make: SimpleNamespace, vocab_size: int, block_size: int, head: int, tail: int
) -> None:
    rows = make.soft_target_rows(5, first_row_id=9, vocab_size=vocab_size, block_size=block_size, head=head, tail=tail)
    schema = soft_targets.schema(vocab_size, block_size, (1.0, 2.0))
    batch = soft_targets.encode(rows, schema, 10)
    batch.validate(full=True)
    assert batch.schema.equals(schema)
    soft_target_rules.check(batch, vocab_size, "here")
    assert_equal_rows(soft_targets.decode(batch), rows)


@pytest.mark.parametrize(("vocab_size", "token"), [(65535, pa.uint16()), (65536, pa.uint32())])
def test_token_type_holds_every_id_and_every_count(make: SimpleNamespace, vocab_size: int, token: pa.DataType) -> None:
    schema = soft_targets.schema(vocab_size, 2)
    assert schema.field("ids").type.value_type == token
    assert schema.field("input_ids").type.value_type == token
    rows = make.soft_target_rows(1, vocab_size=vocab_size, block_size=2, head=vocab_size, tail=0, temperatures=(1.0,))
    batch = soft_targets.encode(rows, schema, 10)
    decoded = soft_targets.decode(batch)
    assert decoded.head_size.max() == vocab_size
    assert decoded.ids.max() == vocab_size - 1
    np.testing.assert_array_equal(decoded.ids, rows.ids)


@pytest.mark.parametrize(("start", "length"), [(0, 1), (1, 1), (2, 3), (4, 1), (0, 5)])
def test_a_slice_of_a_batch_decodes_to_its_own_rows(make: SimpleNamespace, start: int, length: int) -> None:
    schema = soft_targets.schema(50, 6, (1.0, 2.0))
    whole = soft_targets.encode(make.soft_target_rows(5), schema, 10)
    part = whole.slice(start, length)
    alone = pa.RecordBatch.from_pylist(part.to_pylist(), schema=schema)
    soft_target_rules.check(part, 50, "here")
    assert_equal_rows(soft_targets.decode(part), soft_targets.decode(alone))
    assert batch_stats(part, "soft_targets") == batch_stats(alone, "soft_targets")


def test_a_batch_without_rows_decodes_to_none(make: SimpleNamespace) -> None:
    batch = soft_targets.encode(make.soft_target_rows(3), soft_targets.schema(50, 6, (1.0, 2.0)), 10).slice(1, 0)
    rows = soft_targets.decode(batch)
    assert len(rows) == 0
    assert rows.segment_lengths == []


@pytest.mark.parametrize("temperature", [0.5, 2.0, 1.5, 1 / 3, 1.2345678, 1e-7, 12345678.0])
def test_each_temperature_is_found_again_under_its_own_value(make: SimpleNamespace, temperature: float) -> None:
    rows = make.soft_target_rows(2, temperatures=(1.0, temperature))
    batch = soft_targets.encode(rows, soft_targets.schema(50, 6, (1.0, temperature)), 10)
    assert list(soft_targets.decode(batch).tempered_tail_logmass) == [temperature]


def test_logprobs_are_rounded_and_scalars_only_when_told(make: SimpleNamespace) -> None:
    rows = make.soft_target_rows(4)
    decoded = soft_targets.decode(soft_targets.encode(rows, soft_targets.schema(50, 6, (1.0, 2.0)), 3))
    assert np.all(decoded.logprobs.view(np.uint16) & 0b1111111 == 0)
    np.testing.assert_allclose(decoded.logprobs.astype(float), rows.logprobs.astype(float), rtol=2**-4)
    for name in SCALARS:
        np.testing.assert_array_equal(getattr(decoded, name), getattr(rows, name))


def test_logprobs_of_tail_and_label_are_rounded_and_all_other_scalars_kept(make: SimpleNamespace) -> None:
    rows = make.soft_target_rows(40)
    decoded = soft_targets.decode(soft_targets.encode(rows, soft_targets.schema(50, 6, (1.0, 2.0)), 10, 4))
    for name, error in (("tail_logprob", 2**-5), ("label_logprob", 2**-4)):
        stored, exact = getattr(decoded, name), getattr(rows, name)
        assert np.all(stored.view(np.uint16) & 0b111111 == 0), name
        np.testing.assert_allclose(stored.astype(float), exact.astype(float), rtol=error, err_msg=name)
        assert np.any(stored != exact), name
    np.testing.assert_array_equal(decoded.entropy, rows.entropy)
    np.testing.assert_array_equal(decoded.tempered_tail_logmass[2.0], rows.tempered_tail_logmass[2.0])


@pytest.mark.parametrize("is_clumped", [False, True])
def test_rounding_labels_moves_their_mean_over_a_million_tokens_by_less_than_a_tenth_of_its_error(
    make: SimpleNamespace, is_clumped: bool
) -> None:
    """That mean is the teacher's perplexity. A teacher that hardly looks at its context gives few different values."""
    rng, shape = np.random.default_rng(0), (4000, 256)
    laws = -rng.gamma(0.8, 4.0, 60).astype(np.float32)
    label_logprob = rng.choice(laws, shape) if is_clumped else -rng.gamma(0.8, 4.0, shape).astype(np.float32)
    values = {name: np.zeros(shape) for name in ("tail_logprob", "entropy")}
    rows = SoftTargetRows(
        row_id=np.arange(7, 4007), input_ids=np.zeros((4000, 257), np.uint16),
        segment_lengths=[np.array([257])] * 4000, head_size=np.zeros(shape, np.int64),
        tail_size=np.zeros(shape, np.int64), ids=np.zeros(0, np.uint16), logprobs=np.zeros(0),
        label_logprob=label_logprob, tempered_tail_logmass={}, **values,
    )  # fmt: skip
    stored = soft_targets.decode(soft_targets.encode(rows, soft_targets.schema(50, 256), 6, 6)).label_logprob
    assert stored is not None
    moved = stored.astype(np.float64) - label_logprob
    assert abs(moved.mean()) < 0.1 * label_logprob.std() / 1000
    assert moved.std() < 0.02 * label_logprob.std()


def test_head_mask_tells_head_from_tail(hand_made_batch: pa.RecordBatch) -> None:
    rows = soft_targets.decode(hand_made_batch)
    assert soft_targets.head_mask(rows).tolist() == [True, True, False, False] * 7
    assert rows.ids[soft_targets.head_mask(rows)].tolist() == [3, 6] * 7


def test_valid_targets_follow_the_segments(hand_made_batch: pa.RecordBatch) -> None:
    rows = soft_targets.decode(hand_made_batch)
    assert rows.is_valid_target.tolist() == [valid_targets(s).tolist() for s in rows.segment_lengths]
    assert rows.is_valid_target.tolist() == [[True] * 4, [True, False, True, True]]


def test_statistics_count_valid_targets_alone(hand_made_batch: pa.RecordBatch) -> None:
    stats = batch_stats(hand_made_batch, "soft_targets")
    assert (stats.num_tokens, stats.num_targets) == (10, 7)
    assert (stats.entropy_sum_nats, stats.label_nll_sum_nats) == (7 * 1.5, 7 * 2.0)


def at(row: int, *places: int, value: object) -> Edit:
    """An edit that sets values of one row at some places."""

    def edit(rows: list[Any]) -> None:
        for place in places:
            rows[row][place] = value

    return edit


def swap(row: int, first: int, second: int) -> Edit:
    def edit(rows: list[Any]) -> None:
        rows[row][first], rows[row][second] = rows[row][second], rows[row][first]

    return edit


BROKEN_ROWS: dict[str, BrokenRow] = {
    "label outside the vocabulary": ({"input_ids": at(0, 4, value=10)}, "input_ids", "vocabulary of 10"),
    "entry outside the vocabulary": ({"ids": at(1, 3, value=10)}, "ids", "vocabulary of 10"),
    "largest entry that the type holds": ({"ids": at(1, 3, value=65535)}, "ids", "vocabulary of 10"),
    "head not ascending": ({"ids": swap(0, 0, 1)}, "ids", "ascend"),
    "tail not ascending": ({"ids": swap(1, 10, 11)}, "ids", "ascend"),
    "head repeats an id": ({"ids": at(0, 0, value=6)}, "ids", "ascend"),
    "tail repeats an id": ({"ids": at(1, 11, value=0)}, "ids", "ascend"),
    "id in head and tail": ({"ids": at(0, 2, value=6)}, "ids", "both head and tail"),
    "one id too many": ({"ids": lambda rows: rows[0].append(9)}, "ids", "length"),
    "one id too few": ({"ids": lambda rows: rows[1].pop()}, "ids", "length"),
    "ids moved to the next row": (
        {"ids": lambda rows: rows[1].insert(0, rows[0].pop())},
        "ids",
        "length",
    ),
    "one logprob too many": ({"logprobs": lambda rows: rows[0].append(-1.0)}, "logprobs", "length"),
    "one logprob too few": ({"logprobs": lambda rows: rows[1].pop()}, "logprobs", "length"),
    "head counted as tail": (
        {"head_size": at(0, 0, value=1), "tail_size": at(0, 0, value=3)},
        "logprobs",
        "length",
    ),
    "count too large": ({"head_size": at(0, 0, value=65535)}, "ids", "length"),
    "logprob NaN": ({"logprobs": at(0, 3, value=float("nan"))}, "logprobs", "finite"),
    "logprob minus infinity": ({"logprobs": at(0, 3, value=float("-inf"))}, "logprobs", "finite"),
    "logprob positive": ({"logprobs": at(0, 3, value=0.01)}, "logprobs", "≤ 0"),
    "tail logprob NaN": ({"tail_logprob": at(1, 2, value=float("nan"))}, "tail_logprob", "NaN"),
    "tail logprob positive": ({"tail_logprob": at(1, 2, value=0.01)}, "tail_logprob", "above 0"),
    "tail logprob NaN at a masked target": ({"tail_logprob": at(1, 1, value=float("nan"))}, "tail_logprob", "NaN"),
    "label logprob NaN": ({"label_logprob": at(1, 2, value=float("nan"))}, "label_logprob", "NaN"),
    "label logprob positive": ({"label_logprob": at(1, 2, value=0.01)}, "label_logprob", "above 0"),
    "label logprob minus infinity": ({"label_logprob": at(1, 2, value=float("-inf"))}, "label_logprob", "finite"),
    "entropy NaN": ({"entropy": at(0, 0, value=float("nan"))}, "entropy", "outside"),
    "entropy negative": ({"entropy": at(0, 0, value=-0.01)}, "entropy", "outside"),
    "entropy above the logarithm of the vocabulary": ({"entropy": at(0, 0, value=2.4)}, "entropy", "outside"),
    "tempered mass NaN": (
        {"tail_logmass_at_2": at(0, 0, value=float("nan"))},
        "tail_logmass_at_2",
        "NaN",
    ),
    "tempered mass infinite": (
        {"tail_logmass_at_2": at(0, 0, value=float("inf"))},
        "tail_logmass_at_2",
        "infinite",
    ),
    "mass above one": ({"tail_logprob": at(0, 1, value=-0.5)}, "tail_logprob", "mass 1"),
    "mass below one": ({"tail_logprob": at(0, 1, value=float("-inf"))}, "tail_logprob", "mass 1"),
    "head alone above one": (
        {"logprobs": at(0, 0, 1, value=-0.25)},
        "tail_logprob",
        "mass 1",
    ),
    "segments too short": ({"segment_lengths": at(0, 0, value=4)}, "segment_lengths", "5 tokens"),
    "segments too long": ({"segment_lengths": at(1, 0, value=3)}, "segment_lengths", "5 tokens"),
    "segments too long by 2**32": (
        {"segment_lengths": lambda rows: rows[0].extend([2**32 - 1, 1])},
        "segment_lengths",
        "5 tokens",
    ),
    "no segments": ({"segment_lengths": lambda rows: rows[0].clear()}, "segment_lengths", "5 tokens"),
    "empty segment": ({"segment_lengths": lambda rows: rows[0].append(0)}, "segment_lengths", "empty"),
    "masked target with a head": (
        {
            "head_size": at(1, 1, value=1),
            "ids": lambda rows: rows[1].insert(4, 3),
            "logprobs": lambda rows: rows[1].insert(2, -1.0),
        },
        "head_size",
        "masked",
    ),
    "masked target with a tail": (
        {"tail_size": at(1, 1, value=1), "ids": lambda rows: rows[1].insert(4, 3)},
        "head_size",
        "masked",
    ),
    "row ids skip one": ({"row_id": lambda rows: rows.__setitem__(1, 6)}, "row_id", "count up"),
    "row ids repeat": ({"row_id": lambda rows: rows.__setitem__(1, 4)}, "row_id", "count up"),
    "row ids go down": ({"row_id": lambda rows: rows.reverse()}, "row_id", "count up"),
}


@pytest.mark.parametrize("case", BROKEN_ROWS)
def test_a_broken_rule_is_refused_by_the_name_of_its_column(
    hand_made_batch: pa.RecordBatch, make: SimpleNamespace, forge: SimpleNamespace, case: str
) -> None:
    assert_refused(
        hand_made_batch, "soft_targets", make.identity(vocab_size=10, block_size=4), forge, BROKEN_ROWS[case]
    )


@pytest.mark.parametrize(
    ("column", "edit"),
    [
        ("tempered", at(0, 0, value=float("-inf"))),
        ("entropy", at(0, 0, value=2.302)),
        ("tail_logprob", at(0, 0, value=float(np.log(0.29)))),
    ],
    ids=["tempered mass of zero", "uniform entropy", "mass lifted by rounding"],
)
def test_what_the_rules_allow_is_accepted(
    hand_made_batch: pa.RecordBatch, forge: SimpleNamespace, column: str, edit: Edit
) -> None:
    name = {"tempered": "tail_logmass_at_2"}.get(column, column)
    soft_target_rules.check(forge.column(hand_made_batch, name, edit), 10, "here")


@pytest.mark.parametrize("mantissa_bits", [1, 3, 6, 10])
@pytest.mark.parametrize("wrong_target", [0, 3])
def test_a_head_of_almost_nothing_excuses_no_wrong_mass(
    hand_made_batch: pa.RecordBatch, forge: SimpleNamespace, mantissa_bits: int, wrong_target: int
) -> None:
    batch = forge.column(hand_made_batch, "logprobs", at(0, 1, value=-65504.0))
    batch = forge.column(batch, "tail_logprob", at(0, 0, value=float(np.log(0.5))))
    soft_target_rules.check(batch, 10, "here", mantissa_bits)
    batch = forge.column(batch, "tail_logprob", at(0, wrong_target, value=-9.0))
    with pytest.raises(RowError, match="mass 1"):
        soft_target_rules.check(batch, 10, "here", mantissa_bits)


@pytest.mark.parametrize("num_entries", [1, 7, 40, 1 << 18])
def test_a_batch_is_checked_to_its_last_row_however_it_is_cut(
    make: SimpleNamespace, forge: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, num_entries: int
) -> None:
    monkeypatch.setattr(soft_target_rules, "_PIECE_ENTRIES", num_entries)
    batch = soft_targets.encode(make.soft_target_rows(5), soft_targets.schema(50, 6, (1.0, 2.0)), 10)
    soft_target_rules.check(batch, 50, "here")
    for row, ids in enumerate(batch["ids"].to_pylist()):
        head = sorted(ids[:3])
        breaks = {
            "entropy": ("entropy", at(row, 5, value=9.0)),
            "mass 1": ("tail_logprob", at(row, 1 if row % 3 else 0, value=0.0)),
            "ascend": ("ids", swap(row, 0, 1)),
            "both head and tail": ("ids", at(row, 3, value=head[0]) if head[0] < ids[4] else at(row, 4, value=head[2])),
        }
        for words, (column, edit) in breaks.items():
            with pytest.raises(RowError, match=words):
                soft_target_rules.check(forge.column(batch, column, edit), 50, "here")


def test_ids_too_large_for_their_type_are_not_wrapped(make: SimpleNamespace) -> None:
    rows = make.soft_target_rows(1, vocab_size=70000)
    rows.ids[-1] = 65536 + 3
    with pytest.raises(ValueError, match="65539"):
        soft_targets.encode(rows, soft_targets.schema(50, 6, (1.0, 2.0)), 10)


def one_head_rows(logprobs: np.ndarray, tail_logprob: np.ndarray) -> pa.RecordBatch:
    """A block a row, a target a block, with the same number of head ids each and nothing in the tail but its mass."""
    num_rows, head = logprobs.shape
    rows = SoftTargetRows(
        row_id=np.arange(num_rows),
        input_ids=np.zeros((num_rows, 2), dtype=np.uint16),
        segment_lengths=[np.array([2])] * num_rows,
        head_size=np.full((num_rows, 1), head),
        tail_size=np.zeros((num_rows, 1), dtype=np.int64),
        ids=np.tile(np.arange(head), num_rows).astype(np.uint16),
        logprobs=logprobs.reshape(-1),
        tail_logprob=tail_logprob[:, None],
        entropy=np.zeros((num_rows, 1)),
        label_logprob=np.zeros((num_rows, 1)),
        tempered_tail_logmass={},
    )
    return soft_targets.encode(rows, soft_targets.schema(50, 1), 10)


def refused_column(batch: pa.RecordBatch, vocab_size: int, mantissa_bits: int = 10) -> str | None:
    """Of the rule that the batch breaks."""
    try:
        soft_target_rules.check(batch, vocab_size, "here", mantissa_bits)
    except RowError as error:
        return error.column
    return None


def mass_is_right(logprobs: list[float], tail_logprob: float, mantissa_bits: int) -> bool:
    """The rule in plain Python: Σ p + tail is 1 within 0.05 and Σ p (exp(|log p| 2^−(m + 1)) − 1)."""
    probs = [math.exp(logprob) for logprob in logprobs]
    slack = 0.05 + sum(
        p * math.expm1(-logprob * 2.0 ** -(mantissa_bits + 1)) for p, logprob in zip(probs, logprobs, strict=True)
    )
    return abs(math.fsum(probs) + math.exp(tail_logprob) - 1) <= slack


@pytest.mark.parametrize("mantissa_bits", [1, 3, 6, 10])
def test_mass_is_judged_as_by_the_formula(mantissa_bits: int) -> None:
    """Masses from far below 1 to far above, so that every number of bits lets some pass and refuses others."""
    rng = np.random.default_rng(mantissa_bits)
    probs = rng.dirichlet(np.ones(13), size=600) * np.exp(rng.uniform(-1.5, 1.5, (600, 1)))
    stored = np.log(probs).astype(np.float16)
    stored = np.minimum(stored, np.float16(0))
    expected = [mass_is_right(row[:-1], row[-1], mantissa_bits) for row in stored.astype(float).tolist()]
    batch = one_head_rows(stored[:, :-1], stored[:, -1])
    found = [refused_column(batch.slice(row, 1), 50, mantissa_bits) for row in range(len(stored))]
    assert found == [None if is_right else "tail_logprob" for is_right in expected]
    assert 10 < sum(expected) < 590


def test_ids_are_told_apart_in_a_vocabulary_too_large_for_32_bits_of_position_and_id(
    hand_made_rows: SoftTargetRows,
) -> None:
    """With 2**31 ids, what position p and id i add up to is that of position p + 2 when only 32 bits are kept."""
    vocab_size = 2**31
    schema = soft_targets.schema(vocab_size, 4, (1.0, 2.0))
    ids = hand_made_rows.ids.astype(np.uint32)
    assert ids[:2].tolist() == ids[8:10].tolist()  # in position 0 and in position 2
    rows = dataclasses.replace(hand_made_rows, ids=ids, input_ids=hand_made_rows.input_ids.astype(np.uint32))
    assert refused_column(soft_targets.encode(rows, schema, 10), vocab_size) is None
    for entry in range(len(ids) // 4):
        twice = ids.copy()
        twice[4 * entry + 2] = twice[4 * entry]
        batch = soft_targets.encode(dataclasses.replace(rows, ids=twice), schema, 10)
        assert refused_column(batch, vocab_size) == "ids"


def rows_with_gaps(vocab_size: int) -> SoftTargetRows:
    """A row whose targets have 1 to 9 ids in the head and 0 to 9 in the tail, but for two runs of 250 without any."""
    draw = random.Random(vocab_size)
    lengths = np.array([101, *[1] * 250, 201, *[1] * 250, 51])
    is_valid = valid_targets(lengths)
    head_size = np.array([draw.randint(1, 9) if valid else 0 for valid in is_valid])
    tail_size = np.array([draw.randint(0, 9) if valid else 0 for valid in is_valid])
    ids = []
    for head, tail in zip(head_size, tail_size, strict=True):
        drawn = draw.sample(range(vocab_size), head + tail)
        ids += sorted(drawn[:head]) + sorted(drawn[head:])
    nothing = np.zeros((1, len(is_valid)))
    return SoftTargetRows(
        row_id=np.array([0]),
        input_ids=np.zeros((1, len(is_valid) + 1), dtype=np.uint32),
        segment_lengths=[lengths],
        head_size=head_size[None],
        tail_size=tail_size[None],
        ids=np.array(ids, dtype=np.uint32),
        logprobs=np.repeat(-np.log(np.maximum(head_size, 1)), head_size),
        tail_logprob=np.full_like(nothing, -np.inf),
        entropy=nothing,
        label_logprob=nothing,
        tempered_tail_logmass={},
    )


@pytest.mark.parametrize("vocab_size", [20, 50_257, 1 << 24, 1 << 25])
@pytest.mark.parametrize("sorted_entries", [1, 64, 256, 1 << 20])
def test_an_id_in_head_and_tail_is_found_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch, vocab_size: int, sorted_entries: int
) -> None:
    """Also where ids recur from position to position, and where the keys of positions do not fit in 32 bits."""
    monkeypatch.setattr(soft_target_rules, "_SORTED_ENTRIES", sorted_entries)
    rows = rows_with_gaps(vocab_size)
    num_targets = rows.head_size.size
    schema = soft_targets.schema(max(vocab_size, 1 << 16), num_targets)
    assert refused_column(soft_targets.encode(rows, schema, 10), vocab_size) is None
    starts = np.cumsum(rows.head_size + rows.tail_size) - (rows.head_size + rows.tail_size).reshape(-1)
    with_tail = np.flatnonzero(rows.tail_size)
    for target in [*with_tail[:5], *with_tail[5:-5:9], *with_tail[-5:]]:
        start, head, tail = starts[target], rows.head_size[0, target], rows.tail_size[0, target]
        ids = rows.ids.copy()
        ids[start + head] = ids[start + target % head]
        ids[start + head : start + head + tail].sort()
        batch = soft_targets.encode(dataclasses.replace(rows, ids=ids), schema, 10)
        assert refused_column(batch, vocab_size) == "ids", target


def test_the_same_ids_in_positions_far_apart_are_no_repeat() -> None:
    """2^24 ids and 256 positions between, all without entries, are 2^32 together."""
    vocab_size = 1 << 24
    rows = rows_with_gaps(vocab_size)
    ends = np.cumsum(rows.head_size + rows.tail_size)
    for target in np.flatnonzero(rows.head_size[0, :-256] * rows.head_size[0, 256:]):
        ids = rows.ids.copy()
        ids[ends[target] - 1], ids[ends[target + 256] - 1] = vocab_size - 1, vocab_size - 1
        batch = soft_targets.encode(
            dataclasses.replace(rows, ids=ids), soft_targets.schema(vocab_size, rows.head_size.size), 10
        )
        assert refused_column(batch, vocab_size) is None
