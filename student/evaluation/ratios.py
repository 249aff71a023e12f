"""Means over positions, with blocks as the independent draws.

Positions of a block share a context. So a mean Σ sums / Σ counts is a ratio of two sums over blocks, and its standard
error is that of a ratio (Cochran 1977, Sampling Techniques, chapter 6).

Shape legend: B blocks, P positions, K bins.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def ratio_with_error(sums_B: Tensor, counts_B: Tensor) -> tuple[float, float | None]:
    """Return Σ sums / Σ counts and its standard error over independent blocks, which is None for one block.

    Blocks whose count is 0 are no draws.
    """
    num_blocks, total = int((counts_B > 0).sum()), float(counts_B.sum())
    ratio = float(sums_B.sum()) / total
    if num_blocks < 2:
        return ratio, None
    residuals_B = sums_B - ratio * counts_B
    return ratio, math.sqrt(float(residuals_B.square().sum()) * num_blocks / (num_blocks - 1)) / total


class BinnedRatios:
    """Means of values in K bins with their standard errors. Memory does not grow with the number of blocks."""

    def __init__(self, num_bins: int) -> None:
        # c and s are the count and the sum of a bin in one block. The rows are sums over blocks:
        # Σ c, Σ s, Σ c², Σ s c, Σ s², and the number of blocks with c > 0.
        self._moments = torch.zeros(6, num_bins, dtype=torch.float64)

    def __len__(self) -> int:
        return self._moments.shape[1]

    def add(self, bin_P: Tensor, value_P: Tensor, block_P: Tensor) -> None:
        """Add the positions of some whole blocks. A block must not be split over two calls.

        block_P: the block of each position, numbered from 0 in each call.
        """
        num_bins = len(self)
        shape = int(block_P.max()) + 1 if len(block_P) else 0, num_bins
        place_P = block_P * num_bins + bin_P
        size = shape[0] * num_bins
        counts = torch.bincount(place_P, minlength=size).view(shape).double()
        sums = torch.bincount(place_P, weights=value_P.double(), minlength=size).view(shape)
        moments = [counts, sums, counts * counts, sums * counts, sums * sums, (counts > 0).double()]
        self._moments += torch.stack(moments).sum(1)

    def num_positions(self, index: int) -> int:
        """Return the number of positions in a bin."""
        return int(self._moments[0, index])

    def ratio_with_error(self, index: int) -> tuple[float, float | None]:
        """Return the mean of a bin and its standard error over the blocks that reach it, as `ratio_with_error` does.

        The bin must not be empty.
        """
        total, sums, squared_counts, products, squared_sums, num_blocks = self._moments[:, index].tolist()
        ratio = sums / total
        if num_blocks < 2:
            return ratio, None
        # Rounding may give a negative number instead of 0.
        residuals = max(0.0, squared_sums - 2 * ratio * products + ratio * ratio * squared_counts)
        return ratio, math.sqrt(residuals * num_blocks / (num_blocks - 1)) / total
