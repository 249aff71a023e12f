from __future__ import annotations

import numpy as np
import pytest

from storage.draws import hash_permutation, hash_u64, hash_uniform

NUM_DRAWS = 100_000
GOLDEN_U64 = 15020427595393229491
GOLDEN_UNIFORM = [0.7215081806049702, 0.23928447285727472, 0.27598243332716743, 0.42056992093657886]
GOLDEN_PERMUTATION = [3, 2, 7, 1, 5, 0, 4, 6, 8, 9]


def splitmix64(state: int) -> int:
    """SplitMix64's finaliser in Python integers."""
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_hash_is_splitmix64_over_the_coordinates() -> None:
    for coordinates in [(0,), (1,), (0, 0), (3, 1, 4, 1, 5), (2**64 - 1, 2**63)]:
        state = 0
        for coordinate in coordinates:
            state = splitmix64(state ^ coordinate)
        assert int(hash_u64(*coordinates)) == state


def test_first_outputs_are_those_of_the_published_generator() -> None:
    """The reference splitmix64.c seeded with 0 begins with these."""
    golden = 0x9E3779B97F4A7C15
    states = np.array([0, golden, 2 * golden % 2**64], dtype=np.uint64)
    assert hash_u64(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_golden_values_never_change() -> None:
    assert hash_u64(1, 2, 3).item() == GOLDEN_U64
    assert hash_uniform(7, np.arange(4)).tolist() == GOLDEN_UNIFORM
    assert hash_permutation(10, 0, 1, 2).tolist() == GOLDEN_PERMUTATION


def test_uniform_lies_in_the_half_open_unit_interval_with_the_right_moments() -> None:
    draws = hash_uniform(11, np.arange(NUM_DRAWS))
    assert draws.dtype == np.float64
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
    assert abs(draws.mean() - 1 / 2) < 4 * np.sqrt(1 / 12 / NUM_DRAWS)
    assert abs(draws.var() - 1 / 12) < 4 * np.sqrt(1 / 180 / NUM_DRAWS)
    counts = np.histogram(draws, bins=100, range=(0, 1))[0]
    expected = NUM_DRAWS / 100
    assert ((counts - expected) ** 2 / expected).sum() < 99 + 5 * np.sqrt(2 * 99)


def test_largest_hash_is_still_below_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.draws.hash_u64", lambda *_: np.array([2**64 - 1, 0], dtype=np.uint64))
    assert hash_uniform(0).tolist() == [1 - 2.0**-53, 0.0]


@pytest.mark.parametrize("other", [(12, 0), (11, 1)], ids=["next seed", "next purpose"])
def test_neighbouring_streams_are_independent(other: tuple[int, int]) -> None:
    places = np.arange(NUM_DRAWS)
    first, second = hash_uniform(11, 0, places), hash_uniform(*other, places)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(NUM_DRAWS)
    assert abs(np.corrcoef(first[1:], second[:-1])[0, 1]) < 4 / np.sqrt(NUM_DRAWS)


def test_consecutive_places_are_independent() -> None:
    draws = hash_uniform(3, np.arange(NUM_DRAWS))
    for lag in (1, 2, 64):
        assert abs(np.corrcoef(draws[lag:], draws[:-lag])[0, 1]) < 4 / np.sqrt(NUM_DRAWS)


def test_coordinates_broadcast_and_their_order_matters() -> None:
    grid = hash_u64(5, np.arange(3)[:, None], np.arange(4))
    assert grid.shape == (3, 4)
    assert grid[2, 3] == hash_u64(5, 2, 3)
    assert hash_u64(1, 2) != hash_u64(2, 1)
    assert hash_u64(1) != hash_u64(1, 0)
    assert len(np.unique(hash_u64(np.arange(1000)[:, None], np.arange(1000)))) == 1_000_000


def test_hash_does_not_depend_on_the_integer_type() -> None:
    for dtype in (np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64):
        np.testing.assert_array_equal(hash_u64(9, np.arange(100, dtype=dtype)), hash_u64(9, np.arange(100)))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 100, 1001])
def test_permutation_holds_every_index_once(size: int) -> None:
    permutation = hash_permutation(size, 4, 2)
    assert permutation.dtype == np.int64
    assert sorted(permutation.tolist()) == list(range(size))


def test_permutation_depends_on_each_coordinate_alone() -> None:
    base = hash_permutation(50, 1, 2, 3).tolist()
    assert hash_permutation(50, 1, 2, 3).tolist() == base
    others = [hash_permutation(50, *c).tolist() for c in [(0, 2, 3), (1, 0, 3), (1, 2, 0), (1, 2), (1, 2, 3, 0)]]
    assert base not in others


def test_permutations_place_every_index_everywhere_equally_often() -> None:
    size, trials = 5, 4000
    counts = np.zeros((size, size))
    for seed in range(trials):
        counts[np.arange(size), hash_permutation(size, seed)] += 1
    expected = trials / size
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))
