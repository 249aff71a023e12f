"""Means over positions whose independent draws are the blocks that they stand in.

Positions of a block share a context, so a mean Σ sums / Σ counts is a ratio of two sums over blocks, and its standard
error that of a ratio (Cochran 1977, Sampling Techniques, chapter 6). Shape legend: B blocks, P positions, K bins.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def ratio_with_error(sums_B: Tensor, counts_B: Tensor) -> tuple[float, float | None]:
    """Σ sums / Σ counts and its standard error over independent blocks; None for one block."""
    num_blocks, total = len(sums_B), float(counts_B.sum())
    ratio = float(sums_B.sum()) / total
    if num_blocks < 2:
        return ratio, None
    residuals_B = sums_B - ratio * counts_B
    return ratio, math.sqrt(float(residuals_B.square().sum()) * num_blocks / (num_blocks - 1)) / total


class BinnedRatios:
    """Means of values in K bins with their standard errors, in memory that does not grow with the blocks."""

    def __init__(self, num_bins: int) -> None:
        # Over blocks, with a block's sum s and count c of a bin: Σ c, Σ s, Σ c², Σ s c, Σ s², blocks with c > 0.
        self._moments = torch.zeros(6, num_bins, dtype=torch.float64)

    def __len__(self) -> int:
        return self._moments.shape[1]

    def add(self, bin_P: Tensor, value_P: Tensor, block_P: Tensor) -> None:
        """Positions of some whole blocks, numbered from 0 in `block_P`; no block comes in two calls."""
        num_bins = len(self)
        shape = int(block_P.max()) + 1 if len(block_P) else 0, num_bins
        place_P = block_P * num_bins + bin_P
        size = shape[0] * num_bins
        counts = torch.bincount(place_P, minlength=size).view(shape).double()
        sums = torch.bincount(place_P, weights=value_P.double(), minlength=size).view(shape)
        moments = [counts, sums, counts * counts, sums * counts, sums * sums, (counts > 0).double()]
        self._moments += torch.stack(moments).sum(1)

    def num_positions(self, index: int) -> int:
        """Positions in a bin."""
        return int(self._moments[0, index])

    def ratio_with_error(self, index: int) -> tuple[float, float | None]:
        """As the function of that name, over the blocks that reach the bin, which must not be empty."""
        total, sums, squared_counts, products, squared_sums, num_blocks = self._moments[:, index].tolist()
        ratio = sums / total
        if num_blocks < 2:
            return ratio, None
        # Rounding may take what should be 0 below it.
        residuals = max(0.0, squared_sums - 2 * ratio * products + ratio * ratio * squared_counts)
        return ratio, math.sqrt(residuals * num_blocks / (num_blocks - 1)) / total
