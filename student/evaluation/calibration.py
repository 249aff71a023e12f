"""Whether a model that says 30 % is right 30 times of 100.

torchmetrics, which is no dependency, gives the error alone: no bins, and not what chance makes of it.

Shape legend: P positions, K bins of confidence.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from student.evaluation.ratios import BinnedRatios

NUM_BINS = 15


class Calibration:
    """Confidence of the most probable token against how often it is the real one, in bins of equal width."""

    def __init__(self) -> None:
        self._sums = torch.zeros(2, NUM_BINS, dtype=torch.float64)  # of confidences, of accuracies
        self._gaps = BinnedRatios(NUM_BINS)

    def add(self, confidence_P: Tensor, accuracy_P: Tensor, block_P: Tensor) -> None:
        """Positions of some whole blocks; accuracy: 1 where the token was right, 0 where not, or a share."""
        confidence_P, accuracy_P = confidence_P.double(), accuracy_P.double()
        bin_P = (confidence_P * NUM_BINS).ceil().long().sub(1).clamp(0, NUM_BINS - 1)
        for sums, values_P in zip(self._sums, (confidence_P, accuracy_P), strict=True):
            sums += torch.bincount(bin_P, weights=values_P, minlength=NUM_BINS)
        self._gaps.add(bin_P, accuracy_P - confidence_P, block_P)

    def figures(self) -> dict[str, Any] | None:
        """Error and bins (low, high], empty ones left out; None without positions.

        expected_calibration_error: Σ_k n_k / n |accuracy_k − confidence_k| (Guo et al. 2017, equation 3).
        expected_calibration_error_by_chance: about what the same sum would be if every bin's gap were nothing but
        chance, Σ_k n_k / n √(2/π) e_k with e_k the gap's standard error over blocks (None for one block; bins that one
        block alone reaches left out). An interval is not given: the error is a sum of absolute values, so chance
        only raises it, and a bootstrap, which adds chance to what is there, would exclude 0 for every student.
        """
        num_positions = sum(self._gaps.num_positions(index) for index in range(NUM_BINS))
        if not num_positions:
            return None
        bins = [self._bin(index) for index in range(NUM_BINS) if self._gaps.num_positions(index)]
        error = sum(b["num_targets"] * abs(b["accuracy"] - b["mean_confidence"]) for b in bins)
        errors = [b["num_targets"] * b["gap_standard_error"] for b in bins if b["gap_standard_error"] is not None]
        return {
            "expected_calibration_error": error / num_positions,
            "expected_calibration_error_by_chance": (
                math.sqrt(2 / math.pi) * sum(errors) / num_positions if errors else None
            ),
            "bins": bins,
        }

    def _bin(self, index: int) -> dict[str, Any]:
        num_targets = self._gaps.num_positions(index)
        mean_confidence, accuracy = (self._sums[:, index] / num_targets).tolist()
        return {
            "low": index / NUM_BINS,
            "high": (index + 1) / NUM_BINS,
            "num_targets": num_targets,
            "mean_confidence": mean_confidence,
            "accuracy": accuracy,
            "gap_standard_error": self._gaps.ratio_with_error(index)[1],
        }
