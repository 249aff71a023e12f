"""Parts of the reports of several programs: a description of the machine, and tables in Markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "transformers", "pyarrow", "zstandard", "datasets", "numpy")


def machine(device: str) -> dict[str, Any]:
    """Return the device, processor, load, thread count and software versions that measurements depend on."""
    facts = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }
    return facts | {name: version(name) for name in _PACKAGES}


def in_one_line(facts: dict[str, Any]) -> str:
    """Return the names and values of `machine`, separated by commas."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def markdown_table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    lines = [list(heads)]
    lines += [["---"] * len(lines[0]), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()
