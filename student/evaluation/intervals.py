"""Intervals of 95 % for figures made of independent draws, which are blocks or prompts.

scipy.stats has a bootstrap and Student's t, but is no dependency; its draws come from NumPy's Generator, which may draw
otherwise in another version.

Shape legend: D draws, M figures, R replicates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from storage.draws import hash_uniform

Draw = TypeVar("Draw")
Interval = list[float]

_QUANTILES = (0.025, 0.975)
_NUM_REPLICATES = 1000
_BOOTSTRAP_SEED = 21
# Replicates are weighed together as long as their draws are no more than this.
_CELLS = 1 << 20
# Student's t at 0.975 for 1 to 9 degrees of freedom.
_STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_NUM_GROUPS = len(_STUDENT_T) + 1


def ratio_intervals(sums_DM: NDArray[np.float64], counts_DM: NDArray[np.float64]) -> list[Interval | None]:
    """Percentile bootstrap of Σ sums / Σ counts, M times (Efron & Tibshirani 1993, chapter 13).

    Draws are taken with replacement 1,000 times, by a fixed seed, the same ones for all figures. None for a figure that
    fewer than two draws count for.
    """
    ratios_RM = np.concatenate([_ratios(weights_RD, sums_DM, counts_DM) for weights_RD in _resampled(len(sums_DM))])
    num_counted_M = (counts_DM > 0).sum(0)
    return [
        [float(end) for end in np.nanquantile(ratios_R, _QUANTILES)] if num_counted > 1 else None
        for ratios_R, num_counted in zip(ratios_RM.T, num_counted_M, strict=True)
    ]


def mean_intervals(values_DM: NDArray[np.float64]) -> list[Interval | None]:
    """The same for plain means; a draw whose value is NaN counts for nothing."""
    is_counted_DM = ~np.isnan(values_DM)
    return ratio_intervals(np.where(is_counted_DM, values_DM, 0.0), is_counted_DM.astype(np.float64))


def jackknife_interval(share: Callable[[list[Draw]], float | None], draws: Sequence[Draw]) -> Interval | None:
    """Interval of a share of all draws together, such as that of distinct words, which depends on how many there are.

    A bootstrap draws some twice, and a text that is there twice says nothing new: its replicates are all less diverse
    than the texts are. The jackknife leaves out instead: a tenth of the draws at a time (or one draw of fewer than
    ten), with Student's t for as many groups; its variance is biased upwards if at all (Efron & Stein 1981). None for
    fewer than two draws, or where the share is None for those left.
    """
    num_groups = min(len(draws), _NUM_GROUPS)
    if num_groups < 2:
        return None
    whole = share(list(draws))
    parts = [share([draw for i, draw in enumerate(draws) if i % num_groups != g]) for g in range(num_groups)]
    known = [part for part in parts if part is not None]
    if whole is None or len(known) < num_groups:
        return None
    variance = (num_groups - 1) * float(np.var(known))
    margin = _STUDENT_T[num_groups - 2] * variance**0.5
    return [max(0.0, whole - margin), min(1.0, whole + margin)]


def _resampled(num_draws: int) -> Iterator[NDArray[np.float64]]:
    """How often each draw is taken [R, D], over some replicates at a time."""
    rows = max(1, _CELLS // max(num_draws, 1))
    for first in range(0, _NUM_REPLICATES, rows):
        replicates_R1 = np.arange(first, min(first + rows, _NUM_REPLICATES))[:, None]
        uniforms_RD = hash_uniform(_BOOTSTRAP_SEED, replicates_R1, np.arange(num_draws))
        places_RD = (uniforms_RD * num_draws).astype(np.int64) + (replicates_R1 - first) * num_draws
        weights = np.bincount(places_RD.reshape(-1), minlength=places_RD.size)
        yield weights.reshape(places_RD.shape).astype(np.float64)


def _ratios(
    weights_RD: NDArray[np.float64], sums_DM: NDArray[np.float64], counts_DM: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[R, M]; NaN for a replicate in which nothing counts."""
    totals_RM = weights_RD @ counts_DM
    ratios_RM: NDArray[np.float64] = (weights_RD @ sums_DM) / np.where(totals_RM > 0, totals_RM, np.nan)
    return ratios_RM
