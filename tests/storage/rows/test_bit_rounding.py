from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from storage.rows.bit_rounding import FLOAT16_MANTISSA_BITS, round_at_random, round_float16

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


def by_formula(values: NDArray, mantissa_bits: int) -> NDArray[np.float16]:
    """`nearest` in the values' own arithmetic; infinities and NaN as they are, and none that was finite before."""
    wide = values.astype(np.result_type(values, np.float32))
    _, exponent = np.frexp(wide)
    quantum = np.ldexp(wide.dtype.type(1), np.maximum(exponent - 1, -14) - mantissa_bits)
    largest = (2 - 2.0**-mantissa_bits) * 2.0**15
    rounded = np.clip(np.rint(wide / quantum) * quantum, -largest, largest)
    return np.where(np.isfinite(wide), rounded, wide).astype(np.float16)


def around_thresholds(dtype: type) -> NDArray:
    """Each power of two of float16's range and beyond, halves between steps of any size, and their neighbours."""
    powers = np.ldexp(1.0, np.arange(-27, 20))
    steps = 1 + np.ldexp(np.arange(1, 64, dtype=np.float64)[:, None], -np.arange(1, 13)).reshape(-1)
    values = (powers[:, None] * steps).reshape(-1)
    values = np.concatenate([values, powers, [0.0, 65504.0, 65519.0, 65520.0, np.inf, np.nan]]).astype(dtype)
    values = np.concatenate([values, np.nextafter(values, dtype(0)), np.nextafter(values, dtype(np.inf))])
    return np.concatenate([values, -values])


@pytest.mark.filterwarnings("ignore:invalid value encountered", "ignore:overflow encountered")
@pytest.mark.parametrize("mantissa_bits", ALL_MANTISSA_BITS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_bit_is_that_of_the_formula(dtype: type, mantissa_bits: int) -> None:
    rng = np.random.default_rng(mantissa_bits)
    common = rng.normal(size=100_000) * 2.0 ** rng.integers(-20, 17, 100_000)
    patterns = rng.integers(0, 256, 400_000, dtype=np.uint8).view(dtype)
    for values in (EVERY_FLOAT16.astype(dtype), patterns, common.astype(dtype), around_thresholds(dtype)):
        found, expected = round_float16(values, mantissa_bits), by_formula(values, mantissa_bits)
        np.testing.assert_array_equal(found.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("num_values", [1, 65535, 65536, 65537, 200_000])
def test_many_values_are_rounded_as_few(num_values: int) -> None:
    values = -np.random.default_rng(num_values).exponential(size=num_values).astype(np.float32)
    np.testing.assert_array_equal(round_float16(values, 6), by_formula(values, 6))


def test_a_view_with_strides_and_a_scalar_are_served() -> None:
    values = -np.random.default_rng(2).exponential(size=(6, 10))
    np.testing.assert_array_equal(round_float16(values[::2, ::-3], 4), by_formula(values[::2, ::-3], 4))
    assert round_float16(np.array(-0.3), 2) == np.float16(-0.3125)


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


@pytest.mark.parametrize("mantissa_bits", [3, 6, 9])
def test_rounding_at_random_takes_the_two_neighbours_with_the_values_as_expectation(mantissa_bits: int) -> None:
    uniforms = np.random.default_rng(0).random(100_000)
    for value in (-7.3, -0.0123, 5.9999, 1.0):
        rounded = round_at_random(np.full(100_000, value), mantissa_bits, uniforms).astype(np.float64)
        quantum = 2.0 ** (math.floor(math.log2(abs(value))) - mantissa_bits)
        neighbours = {math.floor(value / quantum) * quantum, math.ceil(value / quantum) * quantum}
        assert set(rounded.tolist()) <= neighbours
        assert abs(rounded.mean() - value) < 4 * quantum / 2 / math.sqrt(100_000) + 1e-6 * abs(value)


def test_rounding_at_random_keeps_what_has_few_bits_and_what_is_not_finite() -> None:
    few_bits = np.array([[0.0, -0.0, -1.0, np.nan], [-0.5, -12.0, -65280.0, -np.inf]])
    for uniforms in (np.zeros((2, 4)), np.full((2, 4), 1 - 2**-53)):
        np.testing.assert_array_equal(round_at_random(few_bits, 7, uniforms), few_bits)
        assert np.isfinite(round_at_random(np.array([[-65500.0, -1e30, 1e30, 1e-30]] * 2), 7, uniforms)).all()
