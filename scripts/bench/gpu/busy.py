"""Measure the share of time in which a GPU runs a kernel."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from scripts.support.measure import Action, seconds_of


def busy_share(action: Action) -> float:
    """Return the share of an action's wall-clock time in which a kernel runs. Copies are no kernels."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        seconds = seconds_of(action, "cuda")
    with tempfile.TemporaryDirectory() as directory:
        trace = Path(directory) / "trace.json"
        profile.export_chrome_trace(str(trace))
        return kernel_seconds(json.loads(trace.read_text())["traceEvents"]) / seconds


def kernel_seconds(events: Iterable[dict[str, Any]]) -> float:
    """Return the seconds in which at least one kernel runs. events: those of a Chrome trace, in microseconds."""
    total = end = 0.0
    for event in sorted((e for e in events if e.get("cat") == "kernel"), key=lambda e: float(e["ts"])):
        start, stop = float(event["ts"]), float(event["ts"]) + float(event["dur"])
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total / 1e6
