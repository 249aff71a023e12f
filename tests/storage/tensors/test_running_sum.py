"""Sums by blocks, and the ids at which a running sum exceeds thresholds: as if all of a row were summed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from storage.tensors.running_sum import find_in_running_sum
from storage.tensors.vocabulary_blocks import BLOCK_IDS, block_sums

SIZES = [1, 63, 64, 65, 128, 200, 1000, 1024]


def rows_of(vocab_size: int, seed: int = 0) -> np.ndarray:
    """[5, V] float32 in [0, 1)."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 1 << 20, (5, vocab_size)) / (1 << 20)).astype(np.float32)


@pytest.mark.parametrize("vocab_size", SIZES)
def test_sums_of_blocks(vocab_size: int) -> None:
    rows = rows_of(vocab_size)
    pieces = np.split(rows, range(BLOCK_IDS, vocab_size, BLOCK_IDS), axis=1)
    expected = np.stack([p.astype(np.float64).sum(1) for p in pieces], 1)
    np.testing.assert_allclose(block_sums(torch.from_numpy(rows)).numpy(), expected, rtol=1e-14)


@example(vocab_size=65, seed=0, share_of_zeros=0.5, shares=[1.0])  # the last block holds no weight
@given(
    st.sampled_from(SIZES), st.integers(0, 1000), st.floats(0, 0.98),
    st.lists(st.floats(0, 1.2), min_size=1, max_size=9),
)  # fmt: skip
def test_a_threshold_finds_the_id_whose_interval_of_the_running_sum_holds_it(
    vocab_size: int, seed: int, share_of_zeros: float, shares: list[float]
) -> None:
    rng = np.random.default_rng(seed)
    weights = rows_of(vocab_size, seed) * (rng.random((5, vocab_size)) >= share_of_zeros)
    weights[:, rng.integers(vocab_size)] = 0.5
    running = weights.astype(np.float64).cumsum(axis=1)
    thresholds = np.array(shares) * running[:, -1:]
    tensor = torch.from_numpy(weights)
    found = find_in_running_sum(tensor, block_sums(tensor), torch.from_numpy(thresholds)).numpy()
    chosen = np.take_along_axis(weights, found, axis=1)
    assert (chosen > 0).all()
    end = np.take_along_axis(running, found, axis=1)
    rounding = 1e-12 * running[:, -1:]
    inside = (end - chosen - rounding <= thresholds) & (thresholds <= end + rounding)
    beyond = thresholds >= running[:, -1:] - rounding
    last = np.array([np.flatnonzero(row)[-1] for row in weights])[:, None]
    assert (inside | (beyond & (found == last))).all()


@pytest.mark.parametrize("vocab_size", SIZES)
def test_nan_weights_find_an_id_of_the_vocabulary(vocab_size: int) -> None:
    weights = torch.from_numpy(rows_of(vocab_size))
    weights[1, vocab_size // 2] = weights[2] = np.nan
    thresholds = torch.tensor([[0.0, 0.5, np.nan]], dtype=torch.float64).expand(5, 3).contiguous()
    found = find_in_running_sum(weights, block_sums(weights), thresholds)
    assert found.min() >= 0
    assert found.max() < vocab_size
