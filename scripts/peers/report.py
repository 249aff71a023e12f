"""Write the results of the trials as Markdown tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from scripts.peers.comparison import Column
from scripts.peers.trials import FLIP_OUTCOMES, KILL_OUTCOMES, RERUN_OUTCOMES
from scripts.support.report import markdown_table


def report(columns: Sequence[Column]) -> str:
    """Return the configurations and the four tables, in Markdown."""
    return "\n\n".join(
        [
            "\n".join(_describe(column) for column in columns),
            _table(
                "one bit flipped in a file that holds rows", columns, FLIP_OUTCOMES, [c.data_flips for c in columns]
            ),
            _table("one bit flipped in an index or record", columns, FLIP_OUTCOMES, [c.index_flips for c in columns]),
            _table("writer killed, then read", columns, KILL_OUTCOMES, [c.kills for c in columns]),
            _table("writer killed, run again, read", columns, RERUN_OUTCOMES, [c.reruns for c in columns]),
        ]
    )


def _describe(column: Column) -> str:
    if column.versions is None:
        return f"- {column.system.name}: not installed ({column.missing})"
    versions = ", ".join(f"{name} {version}" for name, version in column.versions.items())
    return f"- {column.system.name}: {column.system.configuration}; {versions}; time limit {column.timeout_s:.0f} s"


def _table(title: str, columns: Sequence[Column], outcomes: Sequence[str], counters: Sequence[Counter[str]]) -> str:
    """Return a table with a row for each outcome of any system. Cells of a system that is not installed are empty."""
    rows = [
        [outcome, *("" if c.versions is None else str(n[outcome]) for c, n in zip(columns, counters, strict=True))]
        for outcome in outcomes
        if any(counter[outcome] for counter in counters)
    ]
    return markdown_table([title, *(column.system.name for column in columns)], rows)
