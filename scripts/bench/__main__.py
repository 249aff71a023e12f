"""Measure this project and a reference side by side, and print the ratios.

python -m scripts.bench loss
python -m scripts.bench all --size tiny --json
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import get_args

import torch
import tyro

from scripts.bench.comparison import Comparison
from scripts.bench.config import MODULES, BenchConfig, Name
from scripts.bench.report import as_json, render
from scripts.support.measure import peak_bytes
from scripts.support.report import machine
from storage.command import run_command
from storage.errors import ConfigError


def main() -> None:
    """Run the chosen benchmarks and print their results.

    Raises ConfigError for --device cuda when PyTorch finds no CUDA device.
    """
    config = tyro.cli(BenchConfig, prog="python -m scripts.bench")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no CUDA device; use --device cpu")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    facts = machine(config.device)
    results: dict[str, tuple[list[Comparison], int]] = {}
    everything = [name for name in get_args(Name) if name != "all" and name not in MODULES]
    for name in everything if config.name == "all" else [config.name]:
        comparisons = list(run_bench(name, config))
        peak = torch.cuda.max_memory_allocated() if config.device == "cuda" else peak_bytes()
        results[name] = comparisons, peak
        if not config.json:
            print(render(name, comparisons, peak, facts), flush=True)
    if config.json:
        print(as_json(results, facts, config))


def run_bench(name: str, config: BenchConfig) -> Iterator[Comparison]:
    """Return the comparisons of one benchmark, which `run` of its module yields: that in MODULES, or of its name."""
    comparisons: Iterator[Comparison] = importlib.import_module(f"scripts.bench.{MODULES.get(name, name)}").run(config)
    return comparisons


if __name__ == "__main__":
    run_command(main)
