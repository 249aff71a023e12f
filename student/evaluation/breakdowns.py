"""Where a student differs from its teacher: divergence by position and by the teacher's entropy, and calibration.

Shape legend: P valid positions, K bins.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from student.evaluation.blocks import block_of_position
from student.evaluation.calibration import Calibration
from student.evaluation.positions import PositionMeasures
from student.evaluation.ratios import BinnedRatios
from student.losses.batches import BlockBatch

_ENTROPY_BIN_NATS = 0.5


class Breakdowns:
    """Sums in bins over one batch of blocks after another."""

    def __init__(self, block_size: int, vocab_size: int) -> None:
        self._block_size = block_size
        self._by_position = BinnedRatios(int(_doubling_bin(torch.tensor([block_size - 1]))) + 1)
        self._by_entropy = BinnedRatios(int(math.log(vocab_size) / _ENTROPY_BIN_NATS) + 1)
        self._calibration = {"student": Calibration(), "teacher": Calibration()}

    def add(self, batch: BlockBatch, found: PositionMeasures) -> None:
        """Add one batch of whole blocks."""
        block_P, kl_P = block_of_position(batch), found.kl.cpu()
        self._by_position.add(_doubling_bin(batch.position_ids[batch.is_valid].cpu()), kl_P, block_P)
        if batch.entropy is not None:
            # The cache rounds entropies, so one may exceed log V.
            entropy_bin_P = (batch.entropy.cpu() / _ENTROPY_BIN_NATS).long().clamp(max=len(self._by_entropy) - 1)
            self._by_entropy.add(entropy_bin_P, kl_P, block_P)
        self._calibration["student"].add(found.confidence.cpu(), found.is_right.cpu(), block_P)
        has_top1_P = found.has_top1.cpu()
        teachers = found.teacher_confidence.cpu()[has_top1_P], found.teacher_is_right.cpu()[has_top1_P]
        self._calibration["teacher"].add(*teachers, block_P[has_top1_P])

    def figures(self) -> dict[str, Any]:
        """Return kl_by_position, kl_by_entropy and calibration, without empty bins.

        kl_by_entropy is None when the cache lacks the entropy.
        """
        return {
            "kl_by_position": [
                {"first_position": first, "last_position": last} | _kl_of(self._by_position, index)
                for index in _filled(self._by_position)
                for first, last in [_positions_of(index, self._block_size)]
            ],
            "kl_by_entropy": [
                {"low_nats": index * _ENTROPY_BIN_NATS, "high_nats": (index + 1) * _ENTROPY_BIN_NATS}
                | _kl_of(self._by_entropy, index)
                for index in _filled(self._by_entropy)
            ]
            or None,
            "calibration": {side: calibration.figures() for side, calibration in self._calibration.items()},
        }


def _doubling_bin(position_P: Tensor) -> Tensor:
    """Return the bin of each position: 0 for position 0, 1 for 1, 2 for 2 and 3, 3 for 4 to 7, …"""
    return torch.frexp(position_P.double()).exponent.long()


def _positions_of(index: int, block_size: int) -> tuple[int, int]:
    """Return the first and the last position of a bin."""
    return (1 << index) >> 1, min((1 << index) - 1, block_size - 1)


def _filled(bins: BinnedRatios) -> list[int]:
    return [index for index in range(len(bins)) if bins.num_positions(index)]


def _kl_of(bins: BinnedRatios, index: int) -> dict[str, Any]:
    mean, standard_error = bins.ratio_with_error(index)
    return {"num_targets": bins.num_positions(index), "kl_nats": mean, "kl_standard_error": standard_error}
