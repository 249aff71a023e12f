"""soft_targets: a row is one block of T + 1 tokens with the teacher's T sparse next-token targets.

Shape legend: R rows, T targets per block, P = R·T positions, H head entries, E head and tail entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.draws import hash_uniform
from storage.rows import columns
from storage.rows.bit_rounding import FLOAT16_MANTISSA_BITS, round_at_random, round_float16
from storage.rows.segments import continues_segment, position_ids

# The columns that a cache lacks when whoever made its rows did not know them, in the order of the schema, in words.
MAY_BE_UNKNOWN = {"entropy": "the teacher's entropy", "label_logprob": "the teacher's probability of the next token"}

# Which random numbers round a label_logprob.
_ROUNDING_SEED = 23

TEMPERED_PREFIX = "tail_logmass_at_"


def tempered_column(temperature: float) -> str:
    """Return the name of the column with the log of the tail's tempered mass at `temperature`."""
    return f"{TEMPERED_PREFIX}{float(temperature)!r}".removesuffix(".0")


def schema(
    vocab_size: int,
    block_size: int,
    temperatures: tuple[float, ...] = (1.0,),
    *,
    is_wanted: bool = False,
    unknown_columns: Sequence[str] = (),
) -> pa.Schema:
    """Return the columns of a soft_targets shard.

    Each of `temperatures` other than 1 adds one column, and so does is_wanted: some targets may be unwanted.
    unknown_columns: those of MAY_BE_UNKNOWN that the rows lack.
    """
    token = columns.token_type(vocab_size)
    per_target = columns.required_fixed_list(pa.float16(), block_size)
    counts = columns.required_fixed_list(token, block_size)
    flags = columns.required_fixed_list(pa.bool_(), block_size)
    tempered = [tempered_column(t) for t in temperatures if t != 1.0]
    return pa.schema(
        [
            columns.required("row_id", pa.int64()),
            columns.required("input_ids", columns.required_fixed_list(token, block_size + 1)),
            columns.required("segment_lengths", columns.required_list(pa.uint32())),
            *([columns.required("is_wanted", flags)] if is_wanted else []),
            columns.required("head_size", counts),
            columns.required("tail_size", counts),
            columns.required("ids", columns.required_list(token)),
            columns.required("logprobs", columns.required_list(pa.float16())),
            columns.required("tail_logprob", per_target),
            *[columns.required(name, per_target) for name in MAY_BE_UNKNOWN if name not in unknown_columns],
            *[columns.required(name, per_target) for name in tempered],
        ]
    )


@dataclass(frozen=True, kw_only=True)
class SoftTargetRows:
    """Rows as numpy arrays.

    row_id [R]; input_ids [R, T+1]; segment_lengths: R arrays, in tokens; is_wanted [R, T]: whether the teacher should
    teach the target, None when every target is wanted; head_size, tail_size [R, T], in entries;
    ids [E]: position by position, the head and then the tail, each ascending; logprobs [H] in nats, one per head id;
    tail_logprob, entropy, label_logprob [R, T] in nats, the last two None when they are not known;
    tempered_tail_logmass {temperature: [R, T]} in nats.
    """

    row_id: NDArray[np.int64]
    input_ids: NDArray[Any]
    segment_lengths: list[NDArray[np.int64]]
    is_wanted: NDArray[np.bool_] | None = None
    head_size: NDArray[np.int64]
    tail_size: NDArray[np.int64]
    ids: NDArray[Any]
    logprobs: NDArray[Any]
    tail_logprob: NDArray[Any]
    entropy: NDArray[Any] | None
    label_logprob: NDArray[Any] | None
    tempered_tail_logmass: dict[float, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.row_id)

    @property
    def positions(self) -> NDArray[np.int64]:
        """Position of each token inside its segment: [R, T+1]."""
        return position_ids(self._all_segment_lengths).reshape(self.input_ids.shape)

    @property
    def _all_segment_lengths(self) -> NDArray[np.int64]:
        return np.concatenate([np.empty(0, dtype=np.int64), *self.segment_lengths])

    @property
    def is_in_one_segment(self) -> NDArray[np.bool_]:
        """Whether token t and the label of target t, token t + 1, lie in the same segment: [R, T]."""
        continues = continues_segment(self._all_segment_lengths).reshape(self.input_ids.shape)
        return np.ascontiguousarray(continues[:, 1:])

    @property
    def is_valid_target(self) -> NDArray[np.bool_]:
        """Whether target t lies in one segment and is wanted, so that there is something to learn: [R, T]."""
        is_in_one = self.is_in_one_segment
        return is_in_one if self.is_wanted is None else is_in_one & self.is_wanted


def encode(
    rows: SoftTargetRows,
    row_schema: pa.Schema,
    mantissa_bits: int,
    scalar_mantissa_bits: int = FLOAT16_MANTISSA_BITS,
) -> pa.RecordBatch:
    """Return the rows as a record batch.

    Round logprobs to `mantissa_bits`, tail_logprob and label_logprob to `scalar_mantissa_bits`, and all other values
    per target to float16. A label_logprob is rounded at random, by row and place, because its mean is the teacher's
    perplexity. Entropies keep all bits: fewer could raise one above log V.
    """
    row_offsets = _entries_per_row(rows.head_size + rows.tail_size)
    head_offsets = _entries_per_row(rows.head_size)
    segments, segment_offsets = columns.flatten_ragged(rows.segment_lengths, np.uint32)
    scalars = {
        "tail_logprob": rows.tail_logprob,
        "entropy": rows.entropy,
        "label_logprob": rows.label_logprob,
    } | {tempered_column(t): mass for t, mass in rows.tempered_tail_logmass.items()}

    def column(field: pa.Field) -> pa.Array:
        match field.name:
            case "row_id":
                return pa.array(rows.row_id, type=pa.int64())
            case "segment_lengths":
                return columns.to_ragged(segments, segment_offsets, field.type)
            case "ids":
                return columns.to_ragged(rows.ids, row_offsets, field.type)
            case "logprobs":
                return columns.to_ragged(round_float16(rows.logprobs, mantissa_bits), head_offsets, field.type)
            case "input_ids" | "is_wanted" | "head_size" | "tail_size":
                return columns.to_fixed(getattr(rows, field.name), field.type)
            case name:
                values = scalars[name]
                assert values is not None, f"the schema has {name}, the rows have not"
                if name == "label_logprob" and scalar_mantissa_bits < FLOAT16_MANTISSA_BITS:
                    uniforms = hash_uniform(_ROUNDING_SEED, rows.row_id[:, None], np.arange(values.shape[1]))
                    return columns.to_fixed(round_at_random(values, scalar_mantissa_bits, uniforms), field.type)
                bits = scalar_mantissa_bits if name == "tail_logprob" else FLOAT16_MANTISSA_BITS
                return columns.to_fixed(round_float16(values, bits), field.type)

    return pa.RecordBatch.from_arrays([column(field) for field in row_schema], schema=row_schema)


def decode(batch: pa.RecordBatch) -> SoftTargetRows:
    """Return the rows of a record batch. Most arrays are views of it, without a copy."""
    segments, segment_offsets = columns.ragged(batch, "segment_lengths")
    segments = segments.astype(np.int64)
    return SoftTargetRows(
        row_id=columns.plain(batch, "row_id"),
        input_ids=columns.fixed(batch, "input_ids"),
        segment_lengths=[segments[start:stop] for start, stop in pairwise(segment_offsets.tolist())],
        is_wanted=_fixed_if_known(batch, "is_wanted"),
        head_size=columns.fixed(batch, "head_size").astype(np.int64),
        tail_size=columns.fixed(batch, "tail_size").astype(np.int64),
        ids=columns.ragged(batch, "ids")[0],
        logprobs=columns.ragged(batch, "logprobs")[0],
        tail_logprob=columns.fixed(batch, "tail_logprob"),
        entropy=_fixed_if_known(batch, "entropy"),
        label_logprob=_fixed_if_known(batch, "label_logprob"),
        tempered_tail_logmass={
            float(name.removeprefix(TEMPERED_PREFIX)): columns.fixed(batch, name)
            for name in batch.schema.names
            if name.startswith(TEMPERED_PREFIX)
        },
    )


def _fixed_if_known(batch: pa.RecordBatch, name: str) -> NDArray[Any] | None:
    return columns.fixed(batch, name) if name in batch.schema.names else None


def head_mask(rows: SoftTargetRows) -> NDArray[np.bool_]:
    """Return whether each entry of `ids` belongs to a head: [E]."""
    return np.repeat(np.tile([True, False], rows.head_size.size), part_sizes(rows))


def part_sizes(rows: SoftTargetRows) -> NDArray[np.int64]:
    """Return the number of entries of each position's head and then of its tail, position by position: [2 P]."""
    return np.stack([rows.head_size.reshape(-1), rows.tail_size.reshape(-1)], axis=1).reshape(-1)


def _entries_per_row(sizes_RT: NDArray[np.int64]) -> NDArray[np.int64]:
    return columns.offsets_of(sizes_RT.sum(axis=1))


def has_is_wanted(settings: Mapping[str, Any]) -> bool:
    """Return whether a cache with these settings has the column is_wanted. A cache that does not say so has not."""
    return settings.get("is_wanted") is True


def unknown_columns(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns that a cache with these settings lacks. A cache that does not say so lacks none.

    settings: perhaps unchecked.
    """
    stated = settings.get("unknown_columns", [])
    return tuple(name for name in MAY_BE_UNKNOWN if name in stated) if isinstance(stated, list) else ()


def mantissa_bits(settings: Mapping[str, Any]) -> int:
    """Return the mantissa bits that logprobs were rounded to. A cache that does not state them kept all 10 bits."""
    bits: int = settings.get("mantissa_bits", FLOAT16_MANTISSA_BITS)
    return bits


def scalar_mantissa_bits(settings: Mapping[str, Any]) -> int:
    """Return the mantissa bits that tail_logprob and label_logprob were rounded to, all 10 where none are stated."""
    bits: int = settings.get("scalar_mantissa_bits", FLOAT16_MANTISSA_BITS)
    return bits
