"""Estimate a total from a sample, with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from pipeline.sources.sample.windows import Window

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An estimated number. Its interval of 95 % reaches from value - below to value + above; 0: it is exact."""

    value: float
    below: float = 0.0
    above: float = 0.0

    @property
    def is_exact(self) -> bool:
        """Whether the interval is the number alone."""
        return self.below == self.above == 0

    def times(self, factor: Estimate) -> Estimate:
        """Return the product with an estimate whose error has nothing to do with this one's.

        The relative errors of independent factors add up in squares (to first order).
        """
        below = math.hypot(self.below * factor.value, self.value * factor.below)
        above = math.hypot(self.above * factor.value, self.value * factor.above)
        return Estimate(value=self.value * factor.value, below=below, above=above)

    def at_most(self, limit: float) -> Estimate:
        """Return the estimate of the smaller one of the number and `limit`."""
        value, low, high = (min(x, limit) for x in (self.value, self.value - self.below, self.value + self.above))
        return Estimate(value=value, below=value - low, above=high - value)


def ratio_total(
    windows: Sequence[Window], counts: Sequence[float], window_bytes: Sequence[float], total_bytes: int
) -> Estimate:
    """Return the total of a count over a source of total_bytes, whose windows hold `counts` in `window_bytes`.

    R = sum w y / sum w x, total = total_bytes R, with weights w, counts y and bytes x. With e = w (y - R x) of the two
    windows of a stratum of N windows, each stratum adds v = (1 - 2 / N) (e1 - e2)^2 to the variance of R sum w x
    (Cochran, Sampling Techniques, 3rd ed. 1977: combined ratio estimate, section 6.11, with two units per stratum). A
    sum in which few v are large knows its size badly, so the degrees of freedom of Student's t are Satterthwaite's
    (1946), (sum s^2)^2 / sum s^4 = 3 (sum v)^2 / sum v^2 - 2, as every v = s^2 chi^2 has one.

    windows: pairs of one stratum, one after the other. window_bytes may be 0, as of a window in which no row begins;
    not all of them.
    """
    weights = [window.weight for window in windows]
    bytes_seen = math.fsum(w * x for w, x in zip(weights, window_bytes, strict=True))
    ratio = math.fsum(w * y for w, y in zip(weights, counts, strict=True)) / bytes_seen
    residuals = [w * (y - ratio * x) for w, y, x in zip(weights, counts, window_bytes, strict=True)]
    variances = [
        (1 - 1 / weight) * (first - second) ** 2
        for weight, first, second in zip(weights[::2], residuals[::2], residuals[1::2], strict=True)
    ]
    return _interval(total_bytes * ratio, total_bytes / bytes_seen, variances)


def _interval(value: float, scale: float, variances: Sequence[float]) -> Estimate:
    """Return an estimate whose error is `scale` times the sum of errors with these variances, one degree each."""
    variance, squares = math.fsum(variances), math.fsum(v * v for v in variances)
    if not squares:
        return Estimate(value=value)
    freedom = min(max(1.0, 3 * variance**2 / squares - 2), float(len(variances)))
    width = students_t(freedom) * math.sqrt(variance) * scale
    return Estimate(value=value, below=width, above=width)


def total_of(estimates: Sequence[Estimate]) -> Estimate:
    """Return the sum of estimates that may err together, so that their intervals add up."""
    value, below, above = (math.fsum(getattr(e, name) for e in estimates) for name in ("value", "below", "above"))
    return Estimate(value=value, below=below, above=above)


def mean_of(values: Sequence[float]) -> Estimate:
    """Return the mean of independent values; of a single one, or none, without an interval."""
    if len(values) < 2:
        return Estimate(value=math.fsum(values))
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    width = students_t(len(values) - 1) * math.sqrt(variance / len(values))
    return Estimate(value=mean, below=width, above=width)


def students_t(freedom: float) -> float:
    """Return the quantile of Student's t for a two-sided interval of 95 %, for 1 degree of freedom or more.

    Below 3 degrees, interpolate in 1 / freedom between the exact values at 1 and 2 and that at 3. From there on, use
    Hill's expansion about the normal quantile (Abramowitz & Stegun 26.7.5), which is within 1 %.
    """
    if freedom < 3:
        exact = {1: math.tan(math.pi * CONFIDENCE / 2), 2: CONFIDENCE * math.sqrt(2 / (1 - CONFIDENCE**2))}
        below = int(freedom)
        share = (1 / below - 1 / freedom) / (1 / below - 1 / (below + 1))
        above = exact[2] if below == 1 else students_t(3)
        return exact[below] * (1 - share) + above * share
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
