"""Count the injected faults and the losses."""

from __future__ import annotations

from collections import Counter


class Tally:
    """Counts of faults and losses by part and place, with a description of every loss."""

    def __init__(self) -> None:
        self._injected: Counter[tuple[str, str]] = Counter()
        self._lost: Counter[tuple[str, str]] = Counter()
        self.losses: list[str] = []

    def add(self, part: str, place: str, problem: str | None) -> None:
        """Count one fault. `problem` describes what it lost, None means nothing."""
        self._injected[part, place] += 1
        if problem is not None:
            self._lost[part, place] += 1
            self.losses.append(f"{part}, {place}: {problem}")

    def injected(self, part: str) -> dict[str, int]:
        """Return the number of faults in a part, by place."""
        return {place: number for (found, place), number in self._injected.items() if found == part}

    def table(self) -> str:
        """Return a table with a line for each part and place, parts in the order of injection, and the sum."""
        parts = list(dict.fromkeys(part for part, _ in self._injected))
        keys = sorted(self._injected, key=lambda key: (parts.index(key[0]), key[1]))
        rows = [(part, place, self._injected[part, place], self._lost[part, place]) for part, place in keys]
        rows.append(("all", "", self._injected.total(), self._lost.total()))
        widths = [max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)]
        head = f"{'fault':<{widths[0]}}  {'where':<{widths[1]}}{'injected':>10}{'survived':>10}{'lost':>6}"
        lines = [
            f"{part:<{widths[0]}}  {place:<{widths[1]}}{number:>10,}{number - lost:>10,}{lost:>6,}"
            for part, place, number, lost in rows
        ]
        return "\n".join([head, *lines])
