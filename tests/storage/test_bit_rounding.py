from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from storage.bit_rounding import FLOAT16_MANTISSA_BITS, round_float16

ALL_MANTISSA_BITS = range(1, FLOAT16_MANTISSA_BITS + 1)
EVERY_FLOAT16 = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
# One mantissa bit has no finite number above this.
LARGEST_OF_ONE_BIT = 49152.0


def nearest(values: NDArray, mantissa_bits: int) -> NDArray[np.float64]:
    """Nearest number with `mantissa_bits` bits after the leading one and float16's exponents, ties to even."""
    values = np.asarray(values, dtype=np.float64)
    _, exponent = np.frexp(values)
    quantum = np.ldexp(1.0, np.maximum(exponent - 1, -14) - mantissa_bits)
    return np.rint(values / quantum) * quantum


@pytest.mark.parametrize("mantissa_bits", ALL_MANTISSA_BITS)
def test_every_float16_goes_to_the_nearest_value_ties_to_even(mantissa_bits: int) -> None:
    values = EVERY_FLOAT16[np.isfinite(EVERY_FLOAT16) & (np.abs(EVERY_FLOAT16) <= LARGEST_OF_ONE_BIT)]
    rounded = round_float16(values, mantissa_bits)
    assert rounded.dtype == np.float16
    np.testing.assert_array_equal(rounded.astype(np.float64), nearest(values, mantissa_bits))


@pytest.mark.parametrize("mantissa_bits", ALL_MANTISSA_BITS)
def test_wider_floats_are_rounded_once_not_twice(mantissa_bits: int) -> None:
    rng = np.random.default_rng(mantissa_bits)
    ties = (1 + (rng.integers(0, 1 << mantissa_bits, 500) + 0.5) / (1 << mantissa_bits)) * 2.0 ** rng.integers(
        -12, 9, 500
    )
    values = -np.concatenate([rng.exponential(size=2000) * 8, ties, ties * (1 + 2.0**-16), ties * (1 - 2.0**-16)])
    np.testing.assert_array_equal(
        round_float16(values, mantissa_bits).astype(np.float64), nearest(values, mantissa_bits)
    )


@pytest.mark.parametrize("mantissa_bits", ALL_MANTISSA_BITS)
def test_subnormals_keep_their_absolute_grid(mantissa_bits: int) -> None:
    smallest = 2.0**-24
    values = np.arange(-1023, 1024) * smallest
    rounded = round_float16(values, mantissa_bits).astype(np.float64)
    grid = smallest * 2 ** (FLOAT16_MANTISSA_BITS - mantissa_bits)
    np.testing.assert_array_equal(rounded, nearest(values, mantissa_bits))
    np.testing.assert_array_equal(rounded % grid, 0.0)


@pytest.mark.parametrize("mantissa_bits", ALL_MANTISSA_BITS)
def test_finite_never_becomes_infinite(mantissa_bits: int) -> None:
    huge = np.array([57344.0, 57345.0, 60000.0, 61440.0, 65504.0, 65520.0, 1e6, 1e30, 1e300])
    rounded = round_float16(np.concatenate([huge, -huge]), mantissa_bits).astype(np.float64)
    assert np.all(np.isfinite(rounded))
    assert np.all(np.abs(rounded) >= LARGEST_OF_ONE_BIT)
    np.testing.assert_array_equal(np.sign(rounded), [1.0] * len(huge) + [-1.0] * len(huge))


@pytest.mark.parametrize("mantissa_bits", ALL_MANTISSA_BITS)
def test_zero_infinity_and_nan_stay_what_they_are(mantissa_bits: int) -> None:
    rounded = round_float16(np.array([0.0, -np.inf, np.inf, np.nan]), mantissa_bits)
    np.testing.assert_array_equal(rounded, np.array([0.0, -np.inf, np.inf, np.nan], dtype=np.float16))


@pytest.mark.parametrize("mantissa_bits", ALL_MANTISSA_BITS)
def test_rounding_again_changes_nothing(mantissa_bits: int) -> None:
    once = round_float16(-np.random.default_rng(0).exponential(size=2000), mantissa_bits)
    np.testing.assert_array_equal(round_float16(once, mantissa_bits), once)


def test_a_logprob_never_becomes_positive_and_shape_is_kept() -> None:
    values = -np.random.default_rng(1).exponential(1e-4, size=(7, 3, 5))
    rounded = round_float16(values, 1)
    assert rounded.shape == values.shape
    assert np.all(rounded <= 0)


def test_an_empty_array_is_served() -> None:
    assert round_float16(np.empty(0, dtype=np.float32), 6).shape == (0,)
