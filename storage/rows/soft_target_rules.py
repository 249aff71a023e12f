"""Check the rules for rows of soft_targets (storage/FORMAT.md, "Rules of a row").

Shape legend: R rows, T targets per block, P positions, F positions with entries, H head entries, E head and tail
entries, X stretches of S entries.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage.errors import RowError
from storage.rows import columns
from storage.rows.bit_rounding import FLOAT16_MANTISSA_BITS
from storage.rows.soft_targets import SoftTargetRows, decode, tempered_column

# How far the mass of head and tail may be from 1, in addition to the error of rounding to few mantissa bits.
MASS_TOLERANCE = 0.05
# Order, repeats and masses are checked in pieces of about this many entries. Longer pieces lose time because they fall
# out of the processor's caches, shorter ones because each takes dozens of calls into NumPy.
_PIECE_ENTRIES = 1 << 19
# Probabilities are added up in units of 1 / _ONE. A sum of as many as the largest vocabulary has ids fits in int64.
_ONE = 1 << 31
# Bits of float16 numbers.
_LARGEST_FINITE, _MINUS_ZERO, _LOWEST_FINITE, _MINUS_INFINITY = 0x7BFF, 0x8000, 0xFBFF, 0xFC00
# Number of entries that are sorted together; larger when some position has more than a quarter of this.
_SORTED_ENTRIES = 256


def check(batch: pa.RecordBatch, vocab_size: int, where: str, mantissa_bits: int = FLOAT16_MANTISSA_BITS) -> None:
    """Raise RowError unless every row obeys the format's rules (storage/FORMAT.md, "Rules of a row").

    mantissa_bits: the mantissa bits that logprobs were rounded to. They bound how far the mass may be from 1.
    """
    rows = decode(batch)
    _check_lengths(batch, rows, where)
    is_valid_RT = rows.is_valid_target
    _check_invalid_targets(rows, is_valid_RT, where)
    _check_vocabulary(rows, vocab_size, where)
    _check_values(rows, vocab_size, where)
    for piece in _pieces(batch, rows, is_valid_RT):
        _check_ascending(piece, where)
        _check_disjoint(piece, where)
        _check_mass(piece, where, mantissa_bits)


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """The positions of consecutive rows, whose lists are as long as the sizes say. Columns are named as in the rows.

    size_P: entries of each position; ends_P: where they end in ids_E.
    """

    head_size_P: NDArray[np.int64]
    tail_size_P: NDArray[np.int64]
    tail_logprob_P: NDArray[Any]
    is_valid_P: NDArray[np.bool_]
    ids_E: NDArray[Any]
    logprobs_H: NDArray[Any]

    @functools.cached_property
    def size_P(self) -> NDArray[np.int64]:
        return self.head_size_P + self.tail_size_P

    @functools.cached_property
    def ends_P(self) -> NDArray[np.int64]:
        return self.size_P.cumsum()


def _pieces(batch: pa.RecordBatch, rows: SoftTargetRows, is_valid_RT: NDArray[np.bool_]) -> Iterator[_Piece]:
    """Cut `rows`, decoded from `batch`, into pieces of equally many rows: about _PIECE_ENTRIES if rows are alike."""
    id_ends, logprob_ends = (columns.ragged_offsets(batch, name).tolist() for name in ("ids", "logprobs"))
    num_pieces = max(1, -(-id_ends[-1] // _PIECE_ENTRIES))
    rows_per_piece = max(1, -(-len(rows) // num_pieces))
    for start in range(0, len(rows), rows_per_piece):
        stop = min(start + rows_per_piece, len(rows))
        yield _Piece(
            head_size_P=rows.head_size[start:stop].reshape(-1),
            tail_size_P=rows.tail_size[start:stop].reshape(-1),
            tail_logprob_P=rows.tail_logprob[start:stop].reshape(-1),
            is_valid_P=is_valid_RT[start:stop].reshape(-1),
            ids_E=rows.ids[id_ends[start] : id_ends[stop]],
            logprobs_H=rows.logprobs[logprob_ends[start] : logprob_ends[stop]],
        )


def _require(is_met: bool | np.bool_, where: str, column: str, problem: str) -> None:
    if not is_met:
        raise RowError(where, column, problem)


def _check_lengths(batch: pa.RecordBatch, rows: SoftTargetRows, where: str) -> None:
    """Raise RowError unless the lists of `batch`, which was decoded to `rows`, are as long as the sizes say."""
    block_size = rows.head_size.shape[1]
    head, tail = rows.head_size.sum(axis=1), rows.tail_size.sum(axis=1)
    segments, offsets = columns.ragged(batch, "segment_lengths")
    covered = columns.row_sums(segments, offsets)
    stored, stored_head = columns.ragged_lengths(batch, "ids"), columns.ragged_lengths(batch, "logprobs")
    _require((stored == head + tail).all(), where, "ids", "its length is not the sum of head_size and tail_size")
    _require((stored_head == head).all(), where, "logprobs", "its length is not the sum of head_size")
    _require((covered == block_size + 1).all(), where, "segment_lengths", f"does not add up to {block_size + 1} tokens")
    _require((segments > 0).all(), where, "segment_lengths", "holds an empty segment")


def _check_invalid_targets(rows: SoftTargetRows, is_valid_RT: NDArray[np.bool_], where: str) -> None:
    num_entries = (rows.head_size + rows.tail_size)[~is_valid_RT]
    _require((num_entries == 0).all(), where, "head_size", "a masked target has entries")
    if rows.is_wanted is None:
        return  # Readers of version 1 never looked at the scalars of masked targets.
    is_possible = rows.is_in_one_segment | ~rows.is_wanted
    _require(is_possible.all(), where, "is_wanted", "a target across two segments is wanted")
    for name, values_RT in _scalars(rows).items():
        _require((values_RT[~is_valid_RT] == 0).all(), where, name, "a masked target has a value")


def _scalars(rows: SoftTargetRows) -> dict[str, NDArray[Any]]:
    """Return the values per target [R, T] by column."""
    stated = {"tail_logprob": rows.tail_logprob, "entropy": rows.entropy, "label_logprob": rows.label_logprob}
    plain = {name: values_RT for name, values_RT in stated.items() if values_RT is not None}
    return plain | {tempered_column(t): logmass for t, logmass in rows.tempered_tail_logmass.items()}


def _check_vocabulary(rows: SoftTargetRows, vocab_size: int, where: str) -> None:
    for column, ids in (("input_ids", rows.input_ids), ("ids", rows.ids)):
        is_inside = ids.max(initial=0) < vocab_size
        _require(is_inside, where, column, f"an id is outside the vocabulary of {vocab_size}")


def _check_ascending(piece: _Piece, where: str) -> None:
    """Raise RowError unless each id is greater than the one before it in its head or tail."""
    is_in_order = np.ones(len(piece.ids_E) + 1, dtype=np.bool_)
    np.greater(piece.ids_E[1:], piece.ids_E[:-1], out=is_in_order[1:-1])
    is_in_order[piece.ends_P] = True
    is_in_order[piece.ends_P - piece.tail_size_P] = True
    _require(is_in_order.all(), where, "ids", "head and tail must each ascend within a position")


def _check_disjoint(piece: _Piece, where: str) -> None:
    """Raise RowError when an id is in both head and tail of a position. Each head and tail must ascend."""
    if len(piece.logprobs_H) in {0, len(piece.ids_E)}:
        return  # There are no heads, or no tails.
    # Sorting many short stretches is several times as fast as sorting one long one. Stretches overlap, so that each
    # position lies within one.
    most_entries = int(piece.size_P.max())
    stretch = min(max(_SORTED_ENTRIES, 4 * most_entries), len(piece.ids_E))
    last = len(piece.ids_E) - stretch
    starts_X = np.append(np.arange(0, last, stretch - most_entries + 1), last)
    keys_XS = columns.stretches(_keys(piece, stretch), starts_X, stretch)
    keys_XS.sort(axis=1)
    # One long comparison is faster than one per stretch. The last key of a stretch may equal the next one's first.
    sorted_keys = keys_XS.reshape(-1)
    is_repeated = sorted_keys[1:] == sorted_keys[:-1]
    is_repeated[stretch - 1 :: stretch] = False
    _require(not is_repeated.any(), where, "ids", "an id stands in both head and tail of a position")


def _keys(piece: _Piece, stretch: int) -> NDArray[Any]:
    """Return integers [E] of which two in a stretch are equal only when position and id are.

    A key is the id and above it the number of the position among those with entries, modulo 2^8, 2^16 or 2^32: a
    stretch holds no more positions than entries. Arrow expands runs of bytes three times as fast as NumPy.
    """
    ends_F = piece.ends_P[piece.size_P > 0]
    number = np.min_scalar_type(stretch - 1)
    numbers_F = np.arange(len(ends_F)).astype(number)
    numbers_E = columns.elements(pc.run_end_decode(columns.runs(numbers_F, ends_F)))
    id_bytes = piece.ids_E.itemsize
    key = np.uint32 if number.itemsize + id_bytes <= np.dtype(np.uint32).itemsize else np.uint64
    keys_E: NDArray[Any] = np.left_shift(numbers_E, 8 * id_bytes, dtype=key)
    keys_E |= piece.ids_E.astype(key)
    return keys_E


def _check_values(rows: SoftTargetRows, vocab_size: int, where: str) -> None:
    _require_bits(rows.logprobs, 0, _LOWEST_FINITE, where, "logprobs", "a value is not a finite number ≤ 0")
    _require_bits(rows.tail_logprob, 0, _MINUS_INFINITY, where, "tail_logprob", "a value is NaN or above 0")
    if rows.label_logprob is not None:
        _require_bits(rows.label_logprob, 0, _MINUS_INFINITY, where, "label_logprob", "a value is NaN or above 0")
        _require_bits(rows.label_logprob, 0, _LOWEST_FINITE, where, "label_logprob", "a value is not finite")
    for temperature, logmass in rows.tempered_tail_logmass.items():
        column, problem = tempered_column(temperature), "a value is NaN or infinite"
        _require_bits(logmass, _LARGEST_FINITE, _MINUS_INFINITY, where, column, problem)
    if rows.entropy is not None:
        most = np.log(vocab_size) * 1.001 + 1e-3
        problem = f"a value is outside 0 to {most:.2f} nats"
        _require_bits(rows.entropy, _float16_bits_at_most(most), _MINUS_ZERO, where, "entropy", problem)


def _require_bits(values: NDArray[Any], most: int, lowest: int, where: str, column: str, problem: str) -> None:
    """Raise RowError unless all float16 values lie between `lowest` and `most`, both given as the bits of a float16.

    most: of +0 or a positive number; lowest: of −0 or a negative number or −∞. As signed integers, the bits of positive
    numbers, of +∞ and of a positive NaN ascend from 1; bits with the sign are negative. As unsigned integers, these
    ascend from −0 through −∞ to the negative NaNs and are above all others. Two maxima are far faster than comparisons
    of float16 values.
    """
    bits = values.view(np.uint16)
    is_within = bits.view(np.int16).max(initial=0) <= most and bits.max(initial=0) <= lowest
    _require(is_within, where, column, problem)


def _float16_bits_at_most(most: float) -> int:
    """Return the bits of the largest float16 that is not above `most`, which is positive."""
    nearest = np.float16(most)
    return int(nearest.view(np.uint16)) - int(float(nearest) > most)


def _check_mass(piece: _Piece, where: str, mantissa_bits: int) -> None:
    """Raise RowError unless Σ head + tail = 1 up to MASS_TOLERANCE and rounding. Every logprob must be ≤ 0.

    Rounding changes a logprob by at most |logprob| 2^−(mantissa_bits + 1).
    """
    # Differences of running sums, in integers: running sums that overflow cancel out. Each probability is off by at
    # most half a unit. Positions whose sum is close to the bound are judged in float64.
    sums_H = np.zeros(len(piece.logprobs_H) + 1, dtype=np.int64)
    np.cumsum(np.take(_fixed_point_probs(), piece.logprobs_H.view(np.uint16)), out=sums_H[1:])
    sums_P = sums_H[columns.offsets_of(piece.head_size_P)]
    mass_P = sums_P[1:] - sums_P[:-1] + np.take(_fixed_point_probs(), piece.tail_logprob_P.view(np.uint16))
    most_off = int(MASS_TOLERANCE * _ONE) - int(piece.head_size_P.max(initial=0)) - 1
    is_off_P = (np.abs(mass_P - _ONE) > most_off) & piece.is_valid_P
    if is_off_P.any():
        head_size_P = piece.head_size_P
        logprobs_H = piece.logprobs_H[np.repeat(is_off_P, head_size_P)].astype(np.float64)
        tail_logprob_P = piece.tail_logprob_P[is_off_P].astype(np.float64)
        _require_mass(logprobs_H, head_size_P[is_off_P], tail_logprob_P, where, mantissa_bits)


@functools.cache
def _fixed_point_probs() -> NDArray[np.int64]:
    """Return exp(x) in units of 1 / _ONE for every float16 x, by its bits; 0 for NaN and for x above 0."""
    logprobs = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
    probs: NDArray[np.float64] = np.exp(np.where(logprobs <= 0, logprobs, -np.inf))
    return np.rint(probs * _ONE).astype(np.int64)


def _require_mass(
    logprobs_H: NDArray[np.float64],
    head_size_P: NDArray[np.int64],
    tail_logprob_P: NDArray[np.float64],
    where: str,
    mantissa_bits: int,
) -> None:
    """Raise RowError unless the mass of each position is 1 up to MASS_TOLERANCE and rounding."""
    starts_P = np.cumsum(head_size_P) - head_size_P

    def per_position(weights_H: NDArray[np.float64]) -> NDArray[np.float64]:
        # reduceat needs an entry at every start, hence the appended 0. For an empty head it returns that one entry.
        sums_P: NDArray[np.float64] = np.add.reduceat(np.append(weights_H, 0.0), starts_P)
        return np.where(head_size_P > 0, sums_P, 0.0)

    probs_H = np.exp(logprobs_H)
    mass_P = per_position(probs_H) + np.exp(tail_logprob_P)
    # Σ p (exp(|log p| 2^−(bits + 1)) − 1) = Σ (exp(log p · (1 − 2^−(bits + 1))) − p). The exp on the left would
    # overflow for small p and few bits.
    slack_P = per_position(np.exp(logprobs_H * (1 - 2.0 ** -(mantissa_bits + 1))) - probs_H) + MASS_TOLERANCE
    _require((np.abs(mass_P - 1) <= slack_P).all(), where, "tail_logprob", "head and tail do not add up to mass 1")
