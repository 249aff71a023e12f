"""Measure seconds and bytes of variants that take turns, so that a noisy machine disturbs all of them alike."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

_STATUS, _RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
Action = Callable[[], object]


def interleaved_seconds(
    variants: Mapping[str, Action], rounds: int, device: str = "cpu", warm_up: int = 1
) -> dict[str, list[float]]:
    """Return the seconds of every variant in every round. The order of the variants is reversed every other round."""
    for _ in range(warm_up):
        for action in variants.values():
            action()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds):
        for name in list(variants)[:: -1 if turn % 2 else 1]:
            seconds[name].append(seconds_of(variants[name], device))
    return seconds


def seconds_of(action: Action, device: str = "cpu") -> float:
    """Return the wall-clock seconds of one run, including the work that it started on the device."""
    _synchronise(device)
    started = time.perf_counter()
    action()
    _synchronise(device)
    return time.perf_counter() - started


def peak_extra_bytes(action: Action, device: str = "cpu") -> int:
    """Return the peak memory of a run minus the memory held before it.

    On a CPU this counts resident pages, on a GPU allocated bytes.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        action()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)
    ctypes.CDLL(None).malloc_trim(0)  # memory that earlier runs freed must not count as held
    reset_peak()
    before = _status_bytes("VmRSS")
    action()
    return max(_status_bytes("VmHWM") - before, 0)


def peak_bytes() -> int:
    """Return the peak resident memory of this process since its start or the last `reset_peak`."""
    return _status_bytes("VmHWM")


def reset_peak() -> None:
    """Restart the measurement of this process's peak resident memory."""
    _RESET_PEAK.write_text("5")


def _status_bytes(field: str) -> int:
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
