"""Numbers as people read them. tqdm's formats are for a bar: 5.41MB without a space, 2:01:40 for two hours."""

from __future__ import annotations

import math
from collections.abc import Sequence

ABSENT = "—"
_SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_COUNTS = ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"))


def whole(value: float | None) -> str:
    """1234567 as 1,234,567."""
    return ABSENT if value is None else f"{value:,.0f}"


def decimal(value: float | None, digits: int = 2) -> str:
    """A number with so many digits behind the point."""
    return ABSENT if value is None else f"{value:,.{digits}f}"


def significant(value: float | str | None) -> str:
    """A number as tables of a chart's data have it: five significant digits, whole numbers in full."""
    if value is None or isinstance(value, str):
        return ABSENT if value is None else value
    if math.isfinite(value) and value == int(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.5g}"


def percent(share: float | None, digits: int = 1) -> str:
    """0.125 as 12.5 %."""
    return ABSENT if share is None else f"{100 * share:.{digits}f} %"


def size(num_bytes: float | None) -> str:
    """Bytes in kB, MB, GB or TB, of powers of a thousand."""
    if num_bytes is None:
        return ABSENT
    scale, unit = next((s for s in _SIZES if num_bytes >= s[0]), (1.0, "bytes"))
    return f"{num_bytes / scale:,.0f} {unit}" if scale == 1.0 else f"{num_bytes / scale:,.1f} {unit}"


def count(value: float) -> str:
    """A count in words: 4.3 million."""
    scale, word = next((c for c in _COUNTS if value >= c[0]), (1.0, ""))
    return f"{value / scale:,.1f} {word}" if word else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Seconds, minutes or hours."""
    if seconds is None:
        return ABSENT
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def interval(ends: Sequence[float] | None, digits: int = 2) -> str:
    """[low, high] as low – high, with thin spaces."""
    return ABSENT if ends is None else f"{ends[0]:,.{digits}f}\u2009–\u2009{ends[1]:,.{digits}f}"


def share_interval(ends: Sequence[float] | None, digits: int = 1) -> str:
    """[low, high] of a share, in percent."""
    return ABSENT if ends is None else interval([100 * end for end in ends], digits)
