"""An estimate from a sample is right on average, and its interval as often as it says."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.sources.sample.ratio import Estimate, mean_of, ratio_total, students_t, total_of
from pipeline.sources.sample.windows import WINDOW_BYTES, Window, draw_windows

Floats = NDArray[np.float64]
# The tokens and the bytes of every window of a source.
Source = tuple[Floats, Floats]
NUM_WINDOWS = 3000
# Sources share so many draws, which take longer than all else.
NUM_DRAWS = 50


def of_one_kind(random: np.random.Generator) -> Source:
    return of_densities(random.normal(0.25, 0.03, NUM_WINDOWS))


def of_densities(tokens_a_byte: Floats) -> Source:
    num_bytes = np.full(NUM_WINDOWS, float(WINDOW_BYTES))
    return tokens_a_byte * num_bytes, num_bytes


def of_many_files(random: np.random.Generator) -> Source:
    """Files of very different sizes, each with its own density, which is larger in larger files."""
    sizes = np.ceil(random.lognormal(3, 1, NUM_WINDOWS)).astype(int)
    density = 0.2 * sizes**0.15 * random.lognormal(0, 0.2, len(sizes))
    return of_densities(np.repeat(density, sizes)[:NUM_WINDOWS] + random.normal(0, 0.02, NUM_WINDOWS))


def of_two_languages(random: np.random.Generator) -> Source:
    """One file somewhere has three times the tokens in a byte."""
    density = random.normal(0.25, 0.03, NUM_WINDOWS)
    size = int(random.integers(50, 800))
    start = int(random.integers(0, NUM_WINDOWS - size))
    density[start : start + size] = random.normal(0.75, 0.08, size)
    return of_densities(density)


def of_mixed_rows(random: np.random.Generator) -> Source:
    """Rows of many lengths, so that windows own more or fewer bytes than they are long."""
    num_bytes = random.lognormal(0, 0.8, NUM_WINDOWS)
    num_bytes *= NUM_WINDOWS * WINDOW_BYTES / num_bytes.sum()
    return num_bytes * random.lognormal(-1.4, 0.3, NUM_WINDOWS) * num_bytes**0.1, num_bytes


def of_rare_numbers(random: np.random.Generator) -> Source:
    """Two windows in a hundred are tables of numbers."""
    is_rare = random.random(NUM_WINDOWS) < 0.02
    return of_densities(np.where(is_rare, 0.8, random.normal(0.25, 0.03, NUM_WINDOWS)))


@pytest.mark.parametrize(
    "make", [of_one_kind, of_many_files, of_two_languages, of_mixed_rows, of_rare_numbers], ids=lambda f: f.__name__
)
def test_intervals_hold_as_often_as_they_say(make: Callable[[np.random.Generator], Source]) -> None:
    num_sources = 300
    misses, errors = 0, []
    for seed in range(num_sources):
        tokens, num_bytes = make(np.random.default_rng(seed))
        found = estimated(tokens, num_bytes, seed)
        error = found.value - math.fsum(tokens)
        misses += not -found.above <= error <= found.below
        errors.append(error / math.fsum(tokens))
    # 95 % of 300 sources, and three standard errors of that share.
    assert 0.012 <= misses / num_sources <= 0.088
    assert abs(np.mean(errors)) < 4 * np.std(errors) / math.sqrt(num_sources)


@functools.cache
def draw(seed: int) -> tuple[list[Window], list[int]]:
    windows = draw_windows([NUM_WINDOWS * WINDOW_BYTES], seed)
    return windows, [window.start // WINDOW_BYTES for window in windows]


def estimated(tokens: Floats, num_bytes: Floats, seed: int) -> Estimate:
    windows, drawn = draw(seed % NUM_DRAWS)
    return ratio_total(windows, tokens[drawn], num_bytes[drawn], NUM_WINDOWS * WINDOW_BYTES)


def test_the_estimate_is_the_formula() -> None:
    random = np.random.default_rng(0)
    windows = [Window(stratum=i // 2, weight=[5, 5, 7, 7, 2, 2][i], start=0, stop=0) for i in range(6)]
    y, x = random.random(6), random.random(6)
    w = np.array([window.weight for window in windows])
    ratio = (w * y).sum() / (w * x).sum()
    variances = [
        (2 * w[i]) ** 2 * (1 - 2 / (2 * w[i])) * np.var(y[i : i + 2] - ratio * x[i : i + 2], ddof=1) / 2
        for i in (0, 2, 4)
    ]
    freedom = np.clip(3 * sum(variances) ** 2 / sum(v * v for v in variances) - 2, 1, 3)
    found = ratio_total(windows, y, x, 100)
    assert found.value == pytest.approx(100 * ratio, rel=1e-12)
    width = students_t(freedom) * math.sqrt(sum(variances)) / (w * x).sum() * 100
    assert (found.below, found.above) == pytest.approx((width, width), rel=1e-12)


def test_a_source_without_differences_has_no_interval() -> None:
    found = estimated(np.full(NUM_WINDOWS, 3.0), np.full(NUM_WINDOWS, float(WINDOW_BYTES)), 0)
    assert found.value == pytest.approx(3 * NUM_WINDOWS)
    assert found.above < 1e-6


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (30, 2.0423), (1e9, 1.95996)]
)
def test_students_t(freedom: float, quantile: float) -> None:
    assert students_t(freedom) == pytest.approx(quantile, rel=0.01)


def test_students_t_falls_without_a_step() -> None:
    values = [students_t(freedom) for freedom in np.arange(1, 6, 0.01)]
    assert all(0 <= before - after < 0.3 for before, after in itertools.pairwise(values))


def test_sums_products_and_limits() -> None:
    one, other = Estimate(value=10, below=1, above=2), Estimate(value=4, below=0.5, above=0.5)
    assert total_of([one, other]) == Estimate(value=14, below=1.5, above=2.5)
    assert one.times(other) == Estimate(value=40, below=math.hypot(4, 5), above=math.hypot(8, 5))
    assert one.at_most(11) == Estimate(value=10, below=1, above=1)
    assert one.at_most(8) == Estimate(value=8)
    assert Estimate(value=8).is_exact
    assert mean_of([3.0]) == Estimate(value=3)
    assert mean_of([1.0, 3.0]).above == pytest.approx(12.7062, rel=1e-4)
