"""Tell which stage of how many begins, and how long all that are left will take."""

from __future__ import annotations

import time

from storage.progress import tell


class Stages:
    """The stages of a run in order, with the seconds that each took when the demo's defaults were timed.

    The times only serve as proportions: what is left is told from what the stages so far have taken here.
    """

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = list(seconds.items())
        self._begun_at: list[float] = []

    def begin(self, title: str) -> None:
        """Say that the next stage begins; its title must be the one that comes next."""
        place = len(self._begun_at)
        expected = self._seconds[place][0]
        if title != expected:
            raise ValueError(f"stage {title!r}, expected {expected!r}")
        self._begun_at.append(time.monotonic())
        tell(f"\n[{place + 1}/{len(self._seconds)}] {title}{self._left(place)}")

    def taken(self) -> dict[str, float]:
        """Seconds of each stage that has begun, the last one until now."""
        ends = [*self._begun_at[1:], time.monotonic()]
        return {title: end - begun for (title, _), begun, end in zip(self._seconds, self._begun_at, ends, strict=False)}

    def _left(self, place: int) -> str:
        done = sum(seconds for _, seconds in self._seconds[:place])
        if not done:
            return ""
        left = sum(seconds for _, seconds in self._seconds[place:])
        elapsed = self._begun_at[-1] - self._begun_at[0]
        return f" (about {left * elapsed / done:.0f} seconds left)"
