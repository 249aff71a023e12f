"""Bit rounding of float16: fewer significant bits, so that zstd finds more to squeeze.

Klöwer et al., "Compressing atmospheric data into its real information content" (2021): round to
nearest, ties to even; the result is an ordinary float16.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FLOAT16_MANTISSA_BITS = 10
_SMALLEST_NORMAL_EXPONENT, _LARGEST_EXPONENT = -14, 15


def round_float16(values: NDArray[np.floating], mantissa_bits: int) -> NDArray[np.float16]:
    """Nearest float16 with `mantissa_bits` explicit mantissa bits; any shape.

    Rounded once, from the values' own precision. Infinities and NaN are kept; a finite value never
    becomes infinite.
    """
    wide = np.asarray(values, dtype=np.result_type(values, np.float32))
    _, exponent = np.frexp(wide)
    quantum = np.ldexp(wide.dtype.type(1), np.maximum(exponent - 1, _SMALLEST_NORMAL_EXPONENT) - mantissa_bits)
    largest = (2 - 2.0**-mantissa_bits) * 2.0**_LARGEST_EXPONENT
    rounded = np.clip(np.rint(wide / quantum) * quantum, -largest, largest)
    return np.where(np.isfinite(wide), rounded, wide).astype(np.float16)
