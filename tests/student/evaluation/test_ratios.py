"""Means with blocks as draws against loops over blocks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from student.evaluation.ratios import BinnedRatios, ratio_with_error


def naive(blocks: list[list[float]]) -> tuple[float, float | None]:
    """Mean of all values, and its standard error over the blocks that have any."""
    blocks = [block for block in blocks if block]
    count = sum(map(len, blocks))
    mean = sum(map(sum, blocks)) / count
    if len(blocks) < 2:
        return mean, None
    spread = sum((sum(block) - mean * len(block)) ** 2 for block in blocks) * len(blocks) / (len(blocks) - 1)
    return mean, math.sqrt(spread) / count


@pytest.mark.parametrize("blocks_per_batch", [1, 4, 30])
def test_bins_equal_loops_over_blocks(blocks_per_batch: int) -> None:
    rng, num_blocks, num_bins = np.random.default_rng(0), 30, 5
    block = np.sort(rng.integers(0, num_blocks, 400))
    # The last bin stays empty, the fourth is reached by one block alone.
    bins = np.where(block == 7, 3, rng.integers(0, 3, 400))
    values = rng.normal(2, 1, 400)
    found = BinnedRatios(num_bins)
    for first in range(0, num_blocks, blocks_per_batch):
        here = (block >= first) & (block < first + blocks_per_batch)
        found.add(*map(torch.from_numpy, (bins[here], values[here].astype(np.float64), block[here] - first)))
    for index in range(4):
        expected = naive([list(values[(block == b) & (bins == index)]) for b in range(num_blocks)])
        assert found.num_positions(index) == np.sum(bins == index)
        mean, error = found.ratio_with_error(index)
        assert mean == pytest.approx(expected[0], rel=1e-12)
        assert error == (None if expected[1] is None else pytest.approx(expected[1], rel=1e-9))
    assert found.ratio_with_error(3)[1] is None
    assert found.num_positions(4) == 0


def test_one_bin_of_all_positions_is_the_plain_ratio() -> None:
    sums, counts = torch.tensor([3.0, 1.0, 8.0]).double(), torch.tensor([2.0, 1.0, 3.0]).double()
    bins = BinnedRatios(1)
    values, block = torch.tensor([1.0, 2.0, 1.0, 3.0, 3.0, 2.0]), torch.tensor([0, 0, 1, 2, 2, 2])
    bins.add(torch.zeros(6, dtype=torch.int64), values, block)
    assert bins.ratio_with_error(0) == pytest.approx(ratio_with_error(sums, counts))


def test_equal_values_have_no_error_and_no_positions_change_nothing() -> None:
    bins = BinnedRatios(2)
    bins.add(torch.zeros(40, dtype=torch.int64), torch.full((40,), 0.1), torch.arange(40) // 7)
    before = bins.ratio_with_error(0)
    nothing = torch.zeros(0, dtype=torch.int64)
    bins.add(nothing, nothing.double(), nothing)
    assert bins.ratio_with_error(0) == before == pytest.approx((0.1, 0.0), abs=1e-8)


def test_the_standard_error_covers_positions_that_share_a_block() -> None:
    rng, num_trials, truth = np.random.default_rng(0), 1000, 2.0
    errors = []
    for _ in range(num_trials):
        counts = rng.integers(5, 100, 60)
        shared = rng.normal(truth, 1, 60)
        sums = np.array([rng.normal(mean, 1, count).sum() for mean, count in zip(shared, counts, strict=True)])
        mean, error = ratio_with_error(torch.from_numpy(sums), torch.from_numpy(counts).double())
        assert error is not None
        errors.append((mean - truth) / error)
    # A share of 0.95 within 1.96 errors has a standard deviation of 0.007; counting positions as draws gives 0.2.
    assert 0.91 < np.mean(np.abs(errors) < 1.96) < 0.98
    assert ratio_with_error(torch.tensor([3.0]), torch.tensor([2.0])) == (1.5, None)
