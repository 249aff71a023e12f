"""Comparisons as a table for people or a document for programs, with the machine they were taken on."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from scripts.bench.comparison import Comparison

_PACKAGES = ("torch", "transformers", "pyarrow", "zstandard", "datasets", "numpy")


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    facts = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }
    return facts | {name: version(name) for name in _PACKAGES}


def render(name: str, comparisons: list[Comparison], peak_bytes: int, facts: dict[str, Any]) -> str:
    """One benchmark as a table."""
    rows = [("what", "ours", "reference", "ratio", "(range)", "target", "")]
    for c in comparisons:
        target = "" if c.target is None else f"{'≥' if c.more_is_better else '≤'} {c.target:g}"
        rows.append(
            (
                c.what,
                f"{c.ours}: {_figure(median(c.our_values))} {c.unit}",
                f"{c.reference}: {_figure(median(c.reference_values))} {c.unit}",
                f"{c.ratio:.3f}",
                f"({min(c.ratios):.3f}–{max(c.ratios):.3f})",
                target,
                {True: "met", False: "MISSED", None: ""}[c.is_met],
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    machine_line = ", ".join(f"{key} {value}" for key, value in facts.items())
    return "\n".join([f"# {name}", *lines, f"peak memory {peak_bytes / 1e6:,.0f} MB; {machine_line}"])


def as_json(results: dict[str, tuple[list[Comparison], int]], facts: dict[str, Any]) -> str:
    """All benchmarks of a run as one document."""
    benches = {
        name: {"comparisons": [c.as_record() for c in comparisons], "peak_bytes": peak_bytes}
        for name, (comparisons, peak_bytes) in results.items()
    }
    return json.dumps({"machine": facts, "benches": benches}, indent=1, ensure_ascii=False)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()
