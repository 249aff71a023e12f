"""Intervals of 95 % for figures over independent draws, which are blocks or prompts.

scipy.stats has a bootstrap and Student's t, but is no dependency. Its draws come from NumPy's Generator, which may draw
other numbers in another version.

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
# Most draws over all replicates that are resampled in one step.
_CELLS = 1 << 20
# Student's t at 0.975 for 1 to 9 degrees of freedom.
_STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_NUM_GROUPS = len(_STUDENT_T) + 1


def ratio_intervals(sums_DM: NDArray[np.float64], counts_DM: NDArray[np.float64]) -> list[Interval | None]:
    """Return the percentile bootstrap of Σ sums / Σ counts for each figure (Efron & Tibshirani 1993, chapter 13).

    Resample the draws with replacement 1,000 times from a fixed seed. All figures share the replicates. A figure with
    fewer than two draws whose count is above 0 has None.
    """
    ratios_RM = np.concatenate([_ratios(weights_RD, sums_DM, counts_DM) for weights_RD in _resampled(len(sums_DM))])
    num_counted_M = (counts_DM > 0).sum(0)
    return [
        [float(end) for end in np.nanquantile(ratios_R, _QUANTILES)] if num_counted > 1 else None
        for ratios_R, num_counted in zip(ratios_RM.T, num_counted_M, strict=True)
    ]


def mean_intervals(values_DM: NDArray[np.float64]) -> list[Interval | None]:
    """Return the same intervals for plain means. A draw whose value is NaN does not count."""
    is_counted_DM = ~np.isnan(values_DM)
    return ratio_intervals(np.where(is_counted_DM, values_DM, 0.0), is_counted_DM.astype(np.float64))


def jackknife_interval(share: Callable[[list[Draw]], float | None], draws: Sequence[Draw]) -> Interval | None:
    """Return the interval of a share over all draws that depends on their number, such as that of distinct words.

    A bootstrap takes some draws twice, and a repeated text adds nothing new. So every replicate would be less diverse
    than the texts. The jackknife leaves out a tenth of the draws at a time (one draw when there are fewer than ten),
    and uses Student's t for that number of groups. Its variance is biased upwards if at all (Efron & Stein 1981).

    Return None for fewer than two draws, or when the share of all draws or of a part is None.
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
    """Yield how often each draw is taken [R, D], for some replicates at a time."""
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
    """Return the ratios [R, M], NaN for a replicate whose counts are all 0."""
    totals_RM = weights_RD @ counts_DM
    ratios_RM: NDArray[np.float64] = (weights_RD @ sums_DM) / np.where(totals_RM > 0, totals_RM, np.nan)
    return ratios_RM
