from __future__ import annotations

import pytest

from storage.pages import numbers


@pytest.mark.parametrize(
    ("value", "written"),
    [(0, "0"), (12, "12"), (1234567, "1,234,567"), (0.123456789, "0.12346"), (1e-9, "1e-09"), (None, "—"),
     (2.0, "2"), (float("nan"), "nan"), (float("inf"), "inf"), ("text", "text")],
)  # fmt: skip
def test_significant(value: float | str | None, written: str) -> None:
    assert numbers.significant(value) == written


def test_sizes_and_counts() -> None:
    assert [numbers.size(n) for n in (0, 999, 1000, 5_406_640, 32_500_000_000)] == [
        "0 bytes", "999 bytes", "1.0 kB", "5.4 MB", "32.5 GB",
    ]  # fmt: skip
    assert [numbers.count(n) for n in (999, 4_273_664, 124_000_000, 2e12)] == [
        "999", "4.3 million", "124.0 million", "2.0 trillion",
    ]  # fmt: skip


def test_shares_intervals_and_durations() -> None:
    assert numbers.percent(0.3159) == "31.6 %"
    assert numbers.interval([0.5251, 0.5649], 3) == "0.525\u2009–\u20090.565"
    assert numbers.share_interval([0.5251, 0.5649]) == "52.5\u2009–\u200956.5"
    assert [numbers.duration(s) for s in (42.4, 600.0, 7300.0, None)] == ["42 s", "10.0 minutes", "2.0 hours", "—"]
    assert numbers.decimal(None) == numbers.whole(None) == numbers.percent(None) == numbers.interval(None) == "—"
