"""Show comparisons and the machine that they were measured on, as a table or as JSON."""

from __future__ import annotations

import dataclasses
import json
from statistics import median
from typing import Any

from scripts.bench.comparison import Comparison
from scripts.bench.config import BenchConfig
from scripts.support.report import in_one_line


def render(name: str, comparisons: list[Comparison], peak_bytes: int, facts: dict[str, Any]) -> str:
    """Return one benchmark as a table."""
    rows = [("what", "ours", "reference", "ratio", "(range)", "target", "")]
    for c in comparisons:
        target = "" if c.target is None else f"{'≥' if c.more_is_better else '≤'} {c.target:g}"
        rows.append(
            (
                c.what,
                f"{c.ours}: {figure(median(c.our_values))} {c.unit}",
                f"{c.reference}: {figure(median(c.reference_values))} {c.unit}",
                f"{c.ratio:.3f}",
                f"({min(c.ratios):.3f}–{max(c.ratios):.3f})",
                target,
                {True: "met", False: "MISSED", None: ""}[c.is_met],
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([f"# {name}", *lines, f"peak memory {peak_bytes / 1e6:,.0f} MB; {in_one_line(facts)}"])


def as_json(results: dict[str, tuple[list[Comparison], int]], facts: dict[str, Any], config: BenchConfig) -> str:
    """Return all benchmarks of a run as one JSON document."""
    benches = {
        name: {"comparisons": [c.as_record() for c in comparisons], "peak_bytes": peak_bytes}
        for name, (comparisons, peak_bytes) in results.items()
    }
    document = {"machine": facts, "settings": dataclasses.asdict(config), "benches": benches}
    return json.dumps(document, indent=1, ensure_ascii=False)


def figure(value: float) -> str:
    """Return a value with four digits, or with all before the point when there are more."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
