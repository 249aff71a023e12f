"""One ratio and the values that it was computed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Our value and a reference's, each measured once a round. A ratio is taken within each round.

    target: the largest ratio that meets the target, or the smallest with `more_is_better`; None means no target.
    """

    what: str
    ours: str
    reference: str
    our_values: list[float]
    reference_values: list[float]
    unit: str
    target: float | None = None
    more_is_better: bool = False

    @classmethod
    def between(
        cls,
        values: Mapping[str, list[float]],
        ours: str,
        reference: str,
        *,
        what: str,
        unit: str,
        target: float | None = None,
        more_is_better: bool = False,
    ) -> Comparison:
        """Return the comparison of two variants, given the values of each by its name."""
        return cls(
            what=what,
            ours=ours,
            reference=reference,
            our_values=values[ours],
            reference_values=values[reference],
            unit=unit,
            target=target,
            more_is_better=more_is_better,
        )

    @property
    def ratios(self) -> list[float]:
        """Our value divided by the reference's, for each round."""
        return [a / b for a, b in zip(self.our_values, self.reference_values, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of `ratios`."""
        return median(self.ratios)

    @property
    def is_met(self) -> bool | None:
        """Whether the ratio meets its target. None when it has no target."""
        if self.target is None:
            return None
        return self.ratio >= self.target if self.more_is_better else self.ratio <= self.target

    def as_record(self) -> dict[str, Any]:
        """Return a dictionary for JSON, with medians, ratio, range and target."""
        return {
            "what": self.what,
            "ours": self.ours,
            "reference": self.reference,
            "unit": self.unit,
            "our_median": median(self.our_values),
            "reference_median": median(self.reference_values),
            "ratio": self.ratio,
            "ratio_range": [min(self.ratios), max(self.ratios)],
            "target": self.target,
            "more_is_better": self.more_is_better,
            "is_met": self.is_met,
            "rounds": len(self.our_values),
        }
