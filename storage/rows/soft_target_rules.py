"""Check the rules for rows of soft_targets (storage/FORMAT.md, "Rules of a row").

Shape legend: R rows, T targets per block, P = R·T positions, F positions with entries, H head entries, E head and tail
entries, X stretches of S entries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.errors import RowError
from storage.rows import columns
from storage.rows.bit_rounding import FLOAT16_MANTISSA_BITS
from storage.rows.soft_targets import SoftTargetRows, decode, part_sizes, tempered_column

# How far the mass of head and tail may be from 1, in addition to the error of rounding to few mantissa bits.
MASS_TOLERANCE = 0.05
# Rows are checked in pieces of about this many entries, which bounds the memory that the check takes. Shorter pieces
# cost more time, because each piece takes a hundred calls into Arrow and NumPy.
_PIECE_ENTRIES = 1 << 19
# Number of entries that are sorted together; larger when some position has more than a quarter of this.
_SORTED_ENTRIES = 256


def check(batch: pa.RecordBatch, vocab_size: int, where: str, mantissa_bits: int = FLOAT16_MANTISSA_BITS) -> None:
    """Raise RowError unless every row obeys the format's rules (storage/FORMAT.md, "Rules of a row").

    mantissa_bits: the mantissa bits that logprobs were rounded to. They bound how far the mass may be from 1.
    """
    _check_lengths(batch, where)
    num_entries = int(columns.ragged_offsets(batch, "ids")[-1])
    rows_per_piece = max(1, batch.num_rows * _PIECE_ENTRIES // max(num_entries, 1))
    for start in range(0, batch.num_rows, rows_per_piece):
        _check_rows(decode(batch.slice(start, rows_per_piece)), vocab_size, where, mantissa_bits)


def _check_rows(rows: SoftTargetRows, vocab_size: int, where: str, mantissa_bits: int) -> None:
    is_valid_RT = rows.is_valid_target
    _check_invalid_targets(rows, is_valid_RT, where)
    _check_ids(rows, vocab_size, where)
    _check_values(rows, vocab_size, where)
    _check_mass(rows, is_valid_RT, where, mantissa_bits)


def _require(condition: Any, where: str, column: str, problem: str) -> None:
    if not np.all(condition):
        raise RowError(where, column, problem)


def _check_lengths(batch: pa.RecordBatch, where: str) -> None:
    block_size = batch.schema.field("head_size").type.list_size
    head = columns.fixed(batch, "head_size").astype(np.int64).sum(axis=1)
    tail = columns.fixed(batch, "tail_size").astype(np.int64).sum(axis=1)
    stored = np.diff(columns.ragged(batch, "ids")[1])
    stored_head = np.diff(columns.ragged(batch, "logprobs")[1])
    segments, offsets = columns.ragged(batch, "segment_lengths")
    covered = columns.row_sums(segments, offsets)
    _require(stored == head + tail, where, "ids", "its length is not the sum of head_size and tail_size")
    _require(stored_head == head, where, "logprobs", "its length is not the sum of head_size")
    _require(covered == block_size + 1, where, "segment_lengths", f"does not add up to {block_size + 1} tokens")
    _require(segments > 0, where, "segment_lengths", "holds an empty segment")


def _check_invalid_targets(rows: SoftTargetRows, is_valid_RT: NDArray[np.bool_], where: str) -> None:
    num_entries = (rows.head_size + rows.tail_size)[~is_valid_RT]
    _require(num_entries == 0, where, "head_size", "a masked target has entries")
    if rows.is_wanted is None:
        return  # Readers of version 1 never looked at the scalars of masked targets.
    _require(rows.is_in_one_segment | ~rows.is_wanted, where, "is_wanted", "a target across two segments is wanted")
    for name, values_RT in _scalars(rows).items():
        _require(values_RT[~is_valid_RT] == 0, where, name, "a masked target has a value")


def _scalars(rows: SoftTargetRows) -> dict[str, NDArray[Any]]:
    """Return the values per target [R, T] by column."""
    stated = {"tail_logprob": rows.tail_logprob, "entropy": rows.entropy, "label_logprob": rows.label_logprob}
    plain = {name: values_RT for name, values_RT in stated.items() if values_RT is not None}
    return plain | {tempered_column(t): logmass for t, logmass in rows.tempered_tail_logmass.items()}


def _check_ids(rows: SoftTargetRows, vocab_size: int, where: str) -> None:
    _require(rows.input_ids < vocab_size, where, "input_ids", f"an id is outside the vocabulary of {vocab_size}")
    _require(rows.ids < vocab_size, where, "ids", f"an id is outside the vocabulary of {vocab_size}")
    part_ends_2P = np.cumsum(part_sizes(rows))
    _check_ascending(rows, part_ends_2P, where)
    _check_disjoint(rows, part_ends_2P, vocab_size, where)


def _check_ascending(rows: SoftTargetRows, part_ends_2P: NDArray[np.int64], where: str) -> None:
    """Raise RowError unless each id is greater than the one before it in its head or tail."""
    is_in_order = np.ones(len(rows.ids) + 1, dtype=np.bool_)
    np.greater(rows.ids[1:], rows.ids[:-1], out=is_in_order[1:-1])
    is_in_order[part_ends_2P] = True
    _require(is_in_order, where, "ids", "head and tail must each ascend within a position")


def _check_disjoint(rows: SoftTargetRows, part_ends_2P: NDArray[np.int64], vocab_size: int, where: str) -> None:
    """Raise RowError when an id is in both head and tail of a position. Each head and tail must ascend."""
    if not np.any((rows.head_size > 0) & (rows.tail_size > 0)):
        return
    # Sorting many short stretches is several times as fast as sorting one long one. Stretches overlap, so that each
    # position lies within one. A key is (number of the position) × vocab_size + id. Keys too large for their type wrap
    # around to 0. Those of one stretch span at most the range of the type, so they remain distinct.
    sizes_P = np.diff(part_ends_2P[1::2], prepend=0)
    sizes_F = sizes_P[sizes_P > 0]
    most_entries = int(sizes_F.max())
    stretch = min(max(_SORTED_ENTRIES, 4 * most_entries), len(rows.ids))
    keys_F = np.arange(len(sizes_F), dtype=np.uint32 if stretch * vocab_size <= 1 << 32 else np.uint64)
    np.multiply(keys_F, vocab_size, out=keys_F)
    keys_E = np.repeat(keys_F, sizes_F)
    np.add(keys_E, rows.ids, out=keys_E)
    stretches = np.lib.stride_tricks.sliding_window_view(keys_E, stretch)
    for keys_XS in (stretches[:: stretch - most_entries + 1], stretches[-1:]):
        sorted_XS = np.sort(keys_XS)
        is_distinct_XS = sorted_XS[:, 1:] != sorted_XS[:, :-1]
        _require(is_distinct_XS, where, "ids", "an id stands in both head and tail of a position")


def _check_values(rows: SoftTargetRows, vocab_size: int, where: str) -> None:
    # As float16 bits, −0 and the negative finite numbers are 0x8000 to 0xFBFF, −∞ is 0xFC00, and +0 is 0.
    logprob_bits = rows.logprobs.view(np.uint16)
    is_negative = logprob_bits - np.uint16(0x8000) < 0x7C00
    _require(is_negative | (logprob_bits == 0), where, "logprobs", "a value is not a finite number ≤ 0")
    _require(rows.tail_logprob <= 0, where, "tail_logprob", "a value is NaN or above 0")
    if rows.label_logprob is not None:
        _require(rows.label_logprob <= 0, where, "label_logprob", "a value is NaN or above 0")
        _require(np.isfinite(rows.label_logprob), where, "label_logprob", "a value is not finite")
    for temperature, logmass in rows.tempered_tail_logmass.items():
        _require(logmass < np.inf, where, tempered_column(temperature), "a value is NaN or infinite")
    if rows.entropy is None:
        return
    entropy = rows.entropy.astype(np.float32)
    most = np.log(vocab_size) * 1.001 + 1e-3
    _require((entropy >= 0) & (entropy <= most), where, "entropy", f"a value is outside 0 to {most:.2f} nats")


def _check_mass(rows: SoftTargetRows, is_valid_RT: NDArray[np.bool_], where: str, mantissa_bits: int) -> None:
    """Raise RowError unless Σ head + tail = 1 up to MASS_TOLERANCE and rounding.

    Rounding changes a logprob by at most |logprob| 2^−(mantissa_bits + 1).
    """
    logprobs_H = rows.logprobs.astype(np.float64)
    head_size_P = rows.head_size.reshape(-1)
    starts_P = np.cumsum(head_size_P) - head_size_P

    def per_position(weights_H: NDArray[np.float64]) -> NDArray[np.float64]:
        # reduceat needs an entry at every start, hence the appended 0. For an empty head it returns that one entry.
        sums_P: NDArray[np.float64] = np.add.reduceat(np.append(weights_H, 0.0), starts_P)
        return np.where(head_size_P > 0, sums_P, 0.0)

    probs_H = np.exp(logprobs_H)
    mass_P = per_position(probs_H) + np.exp(rows.tail_logprob.reshape(-1).astype(np.float64))
    is_off_P = (np.abs(mass_P - 1) > MASS_TOLERANCE) & is_valid_RT.reshape(-1)
    if not np.any(is_off_P):
        return
    # Σ p (exp(|log p| 2^−(bits + 1)) − 1) = Σ (exp(log p · (1 − 2^−(bits + 1))) − p). The exp on the left would
    # overflow for small p and few bits.
    slack_P = per_position(np.exp(logprobs_H * (1 - 2.0 ** -(mantissa_bits + 1))) - probs_H) + MASS_TOLERANCE
    is_wrong_P = is_off_P & (np.abs(mass_P - 1) > slack_P)
    _require(~is_wrong_P, where, "tail_logprob", "head and tail do not add up to mass 1")
