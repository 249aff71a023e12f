"""Bit rounding of float16: fewer significant bits, so that zstd finds more to squeeze.

Klöwer et al., "Compressing atmospheric data into its real information content" (2021): round to
nearest, ties to even, on the bit pattern; the result is an ordinary float16.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FLOAT16_MANTISSA_BITS = 10
# Largest finite magnitude kept, so that rounding up never reaches infinity.
_CLAMP_NATS = 60000.0


def round_float16(values: NDArray[np.floating], mantissa_bits: int) -> NDArray[np.float16]:
    """Nearest float16 with `mantissa_bits` explicit mantissa bits; any shape; infinities are kept."""
    clamped = np.where(np.isinf(values), values, np.clip(values, -_CLAMP_NATS, _CLAMP_NATS))
    half = clamped.astype(np.float16)
    dropped = FLOAT16_MANTISSA_BITS - mantissa_bits
    if dropped == 0:
        return half
    bits = half.view(np.uint16).astype(np.uint32)
    lowest_kept = (bits >> dropped) & 1
    rounded = (bits + (1 << (dropped - 1)) - 1 + lowest_kept) >> dropped << dropped
    finite = np.isfinite(half)
    return np.where(finite, rounded, bits).astype(np.uint16).view(np.float16)
