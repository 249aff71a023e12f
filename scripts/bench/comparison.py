"""One ratio with what it was made of."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Ours against a reference, each measured once a round; `ratios` are taken within rounds.

    `target`: what the ratio is to be, at most, or at least with `more_is_better`; None when there is none.
    """

    what: str
    ours: str
    reference: str
    our_values: list[float]
    reference_values: list[float]
    unit: str
    target: float | None = None
    more_is_better: bool = False

    @property
    def ratios(self) -> list[float]:
        """Ours / reference, round by round."""
        return [a / b for a, b in zip(self.our_values, self.reference_values, strict=True)]

    @property
    def ratio(self) -> float:
        """The median over rounds."""
        return median(self.ratios)

    @property
    def is_met(self) -> bool | None:
        """Whether the ratio reaches its target."""
        if self.target is None:
            return None
        return self.ratio >= self.target if self.more_is_better else self.ratio <= self.target

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
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
