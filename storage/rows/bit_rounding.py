"""Round float16 numbers to fewer significant bits, so that zstd compresses them better.

The method is the bit rounding of Klöwer et al., "Compressing atmospheric data into its real information content"
(2021): round to nearest, ties to even. The result is an ordinary float16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOAT16_MANTISSA_BITS = 10
# With fewer bits of the tail's logprob, head and tail could miss a mass of 1 by more than readers accept.
LEAST_SCALAR_MANTISSA_BITS = 3
_FLOAT16_EXPONENT_BIAS = 15
_SIGN, _MAGNITUDE = np.uint16(0x8000), np.uint16(0x7FFF)
# For magnitudes in [low, high), rounding involves neither float16 subnormals nor a limit to the largest finite value.
_COMMON_LOW, _COMMON_HIGH = 2.0**-14, 2.0**15
# A chunk of this size and its intermediate arrays fit in the cache of a processor core.
_CHUNK_VALUES = 1 << 16


def round_float16(values: NDArray[np.floating], mantissa_bits: int) -> NDArray[np.float16]:
    """Return the nearest float16 numbers with `mantissa_bits` explicit mantissa bits.

    values: any shape, of float16, float32 or float64. Each value is rounded once, from its own precision. Infinities
    and NaN are kept. A finite value never becomes infinite.
    """
    wide = np.asarray(values, dtype=np.result_type(values, np.float32))
    flat = wide.reshape(-1)
    rounded = np.empty(flat.shape, dtype=np.float16)
    for start in range(0, len(flat), _CHUNK_VALUES):
        chunk = flat[start : start + _CHUNK_VALUES]
        bits, is_common = _round_common(chunk, mantissa_bits)
        rounded[start : start + _CHUNK_VALUES] = bits.view(np.float16)
        if not is_common.all():
            rare = np.flatnonzero(~is_common)
            rounded[start + rare] = _round_rare(chunk[rare], mantissa_bits)
    return rounded.reshape(wide.shape)


def round_at_random(
    values: NDArray[np.floating], mantissa_bits: int, uniforms: NDArray[np.float64]
) -> NDArray[np.float16]:
    """Return float16 numbers with `mantissa_bits` explicit mantissa bits whose expectations are the values.

    Each value becomes one of its two neighbours, the nearer one more probably: stochastic rounding (Croci et al. 2022,
    section 2). A mean over many values thus stays right even where many are equal. Rounding to nearest would move equal
    values all alike.

    uniforms: the draws, in [0, 1), of the shape of values. Infinities and NaN are kept. A finite value never becomes
    infinite.
    """
    num_dropped = np.finfo(np.float32).nmant - mantissa_bits
    wide = np.asarray(values, dtype=np.float32)
    raised = wide.view(np.uint32) + (uniforms * (1 << num_dropped)).astype(np.uint32)
    kept = raised & ~np.uint32((1 << num_dropped) - 1)
    largest = (2 - 2.0**-mantissa_bits) * _COMMON_HIGH
    rounded = np.clip(kept.view(np.float32), -largest, largest)
    return np.where(np.isfinite(wide), rounded, wide).astype(np.float16)


def _round_common(wide: NDArray[Any], mantissa_bits: int) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """Return the bits of the nearest float16 for each value, and whether they are right.

    They are right for a magnitude in [_COMMON_LOW, _COMMON_HIGH). Let u = 2^num_dropped be the weight of the lowest bit
    that is kept. Add u / 2 - 1, and 1 more when that bit is 1. The sum carries into the kept bits exactly when rounding
    to nearest, ties to even, goes up. The same addition changes the bias of the exponent to that of float16. Then clear
    the bits below the kept ones.
    """
    layout = np.finfo(wide.dtype)
    bits = wide.view(f"u{wide.dtype.itemsize}")
    unsigned = bits.dtype.type
    num_dropped = layout.nmant - mantissa_bits
    other_bias = (layout.maxexp - 1 - _FLOAT16_EXPONENT_BIAS) << layout.nmant
    carried = bits >> unsigned(num_dropped)
    carried &= unsigned(1)
    carried += bits
    carried += unsigned(((1 << (num_dropped - 1)) - 1 - other_bias) % (1 << layout.bits))
    carried >>= unsigned(layout.nmant - FLOAT16_MANTISSA_BITS)
    rounded = carried.astype(np.uint16)
    rounded &= _MAGNITUDE & ~np.uint16((1 << (FLOAT16_MANTISSA_BITS - mantissa_bits)) - 1)
    top = _top_bits(bits)
    low, high = _top_bits(np.array([_COMMON_LOW, _COMMON_HIGH], dtype=wide.dtype).view(bits.dtype))
    rounded |= top & _SIGN
    top &= _MAGNITUDE
    top -= low  # smaller numbers wrap around to large ones
    return rounded, top < high - low


def _top_bits(bits: NDArray[Any]) -> NDArray[np.uint16]:
    """Return the 16 highest bits: the sign, the exponent and the highest bits of the mantissa."""
    top: NDArray[np.uint16] = (bits >> bits.dtype.type(8 * bits.dtype.itemsize - 16)).astype(np.uint16)
    return top


def _round_rare(wide: NDArray[Any], mantissa_bits: int) -> NDArray[np.float16]:
    """Return the nearest float16 of magnitudes outside [_COMMON_LOW, _COMMON_HIGH); keep infinities and NaN."""
    quantum = np.where(np.abs(wide) < 1, _COMMON_LOW, _COMMON_HIGH).astype(wide.dtype) * 2.0**-mantissa_bits
    largest = (2 - 2.0**-mantissa_bits) * _COMMON_HIGH
    rounded = np.clip(np.rint(wide / quantum) * quantum, -largest, largest)
    return np.where(np.isfinite(wide), rounded, wide).astype(np.float16)
