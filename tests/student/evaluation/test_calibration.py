"""Expected calibration error against loops over bins, and on models whose calibration is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from student.evaluation.calibration import Calibration


def calibrated(rng: np.random.Generator, num_positions: int, gap: float) -> Calibration:
    """A model right `gap` less often than it says."""
    confidence = rng.uniform(0.1, 1.0, num_positions)
    accuracy = (rng.random(num_positions) < confidence - gap).astype(np.float64)
    found = Calibration()
    found.add(*map(torch.from_numpy, (confidence, accuracy, np.arange(num_positions) // 50)))
    return found


def test_bins_equal_loops_over_positions() -> None:
    rng = np.random.default_rng(0)
    # Nothing between 0.4 and 0.6; the edges 1/15 and 1 belong to the bins below them.
    confidence = np.concatenate([rng.uniform(0.01, 0.4, 150), rng.uniform(0.6, 1, 148), [1.0, 1 / 15]])
    accuracy = rng.choice([0.0, 0.5, 1.0], 300)
    block = np.arange(300) // 30
    found = Calibration()
    for first in (0, 4):
        here = (block >= first) & (block < first + (4 if first == 0 else 6))
        found.add(*map(torch.from_numpy, (confidence[here], accuracy[here], block[here] - first)))
    figures = found.figures()
    assert figures is not None
    error, by_chance, bins = 0.0, 0.0, []
    for index in range(15):
        low, high = index / 15, (index + 1) / 15
        inside = [i for i in range(300) if low < confidence[i] <= high]
        if not inside:
            continue
        gaps = accuracy[inside] - confidence[inside]
        blocks = [gaps[block[inside] == b] for b in np.unique(block[inside])]
        spread = sum((part - gaps.mean()).sum() ** 2 for part in blocks) * len(blocks) / (len(blocks) - 1)
        standard_error = math.sqrt(spread) / len(inside)
        error += len(inside) / 300 * abs(gaps.mean())
        by_chance += len(inside) / 300 * math.sqrt(2 / math.pi) * standard_error
        bins.append(
            {
                "low": low, "high": high, "num_targets": len(inside),
                "mean_confidence": confidence[inside].mean(), "accuracy": accuracy[inside].mean(),
                "gap_standard_error": standard_error,
            }
        )  # fmt: skip
    assert len(bins) == 12
    for bin_found, expected in zip(figures["bins"], bins, strict=True):
        assert bin_found == pytest.approx(expected, rel=1e-9)
    assert figures["expected_calibration_error"] == pytest.approx(error, rel=1e-9)
    assert figures["expected_calibration_error_by_chance"] == pytest.approx(by_chance, rel=1e-9)


def test_a_calibrated_model_shows_the_error_of_chance_and_another_its_own() -> None:
    rng = np.random.default_rng(1)
    found = [calibrated(rng, 3000, 0.0).figures() for _ in range(60)]
    errors = [figures["expected_calibration_error"] for figures in found if figures]
    by_chance = [figures["expected_calibration_error_by_chance"] for figures in found if figures]
    assert np.mean(errors) == pytest.approx(np.mean(by_chance), rel=0.06)
    overconfident = calibrated(rng, 20_000, 0.1).figures()
    assert overconfident is not None
    assert overconfident["expected_calibration_error"] == pytest.approx(0.1, abs=0.01)
    assert overconfident["expected_calibration_error_by_chance"] < 0.02


def test_one_block_knows_no_chance_and_no_positions_no_error() -> None:
    assert Calibration().figures() is None
    found = Calibration()
    found.add(torch.tensor([0.5, 0.7]), torch.tensor([1.0, 1.0]), torch.tensor([0, 0]))
    figures = found.figures()
    assert figures is not None
    assert figures["expected_calibration_error"] == pytest.approx(0.4)
    assert figures["expected_calibration_error_by_chance"] is None
    assert [values["gap_standard_error"] for values in figures["bins"]] == [None, None]
