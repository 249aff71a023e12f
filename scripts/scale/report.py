"""Show measurements and the cost model as Markdown for docs/scale.md, or as one JSON document."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from typing import Any

from scripts.scale.assumptions import Assumptions
from scripts.scale.costs import Amount, Limit, assumed, costs, precompute_limits, training_limits
from scripts.scale.measurements import Measured
from scripts.support.report import in_one_line, markdown_table

_MOST_SECONDS, _MOST_BYTES = 5.0, 500e6
_PREFIXES = ("", "k", "M", "G", "T")
_PREFIXED = ("B/s", "FLOP/s")


def render_measurements(measured: Iterable[Measured], facts: dict[str, Any]) -> str:
    """Return a table that says whether start-up meets its target, with the machine below."""
    rows = [
        (
            m.what,
            f"{m.seconds:.2f} s",
            f"{m.peak_bytes / 1e6:.0f} MB",
            _verdict(m),
            ", ".join(f"{name} {_exact(value)}" for name, value in m.figures.items()),
        )
        for m in measured
    ]
    table = markdown_table(("what", "time", "peak memory", "target", "figures"), rows)
    return f"{table}\n\nMachine: {in_one_line(facts)}."


def render_costs(assumptions: Assumptions) -> str:
    """Return tables of the costs, of the bottlenecks of teacher and students, and of all assumptions."""
    heads = ("resource", "asked", "there is", "share")
    entered = [dataclasses.replace(number, what=f"`{number.what}`") for number in assumed(assumptions)]
    return "\n\n".join(
        (
            "### Costs",
            markdown_table(("what", "value", "how"), map(_amount_row, costs(assumptions))),
            "### Where it saturates: one GPU with the teacher",
            markdown_table(heads, map(_limit_row, precompute_limits(assumptions))),
            f"### Where it saturates: students on a box of {assumptions.gpus_per_box} GPUs",
            markdown_table(heads, map(_limit_row, training_limits(assumptions))),
            "### What enters",
            markdown_table(("assumption", "value", "source"), map(_amount_row, entered)),
        )
    )


def as_json(measured: list[Measured], assumptions: Assumptions | None, facts: dict[str, Any]) -> str:
    """Return everything as one JSON document."""
    model = {} if assumptions is None else _as_records(assumptions)
    records = [dataclasses.asdict(m) for m in measured]
    return json.dumps({"machine": facts, "measurements": records} | model, indent=1, ensure_ascii=False)


def _as_records(assumptions: Assumptions) -> dict[str, Any]:
    parts: dict[str, list[Amount] | list[Limit]] = {
        "costs": costs(assumptions),
        "precompute_limits": precompute_limits(assumptions),
        "training_limits": training_limits(assumptions),
        "assumptions": assumed(assumptions),
    }
    return {name: [dataclasses.asdict(line) for line in lines] for name, lines in parts.items()}


def _verdict(measured: Measured) -> str:
    if not measured.is_start_up:
        return ""
    return "met" if measured.seconds < _MOST_SECONDS and measured.peak_bytes < _MOST_BYTES else "MISSED"


def _amount_row(amount: Amount) -> tuple[str, ...]:
    return amount.what, _figure(amount.value, amount.unit), amount.how


def _limit_row(limit: Limit) -> tuple[str, ...]:
    asked, available = (_figure(value, limit.unit) for value in (limit.asked, limit.available))
    return limit.resource, asked, available, f"{limit.share:.2%}"


def _exact(value: int | str) -> str:
    return value if isinstance(value, str) else f"{value:,}"


def _figure(value: float, unit: str) -> str:
    """Format rates of bytes and operations with a prefix, counts in full, and small numbers with four digits."""
    if unit in _PREFIXED:
        power = min(max(int(math.log10(value)) // 3, 0), len(_PREFIXES) - 1)
        return f"{value / 1000**power:.4g} {_PREFIXES[power]}{unit}"
    return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.4g} {unit}"
