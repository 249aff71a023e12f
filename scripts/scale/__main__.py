"""Measure what planning, opening, resuming and shuffling a cache of 10^12 tokens take, and estimate its costs.

    python -m scripts.scale
    python -m scripts.scale --num-shards 480000 --parts measurements
    python -m scripts.scale --parts costs --assume.flops-utilisation 0.3

The program makes up the records of 64,000 shards below TMPDIR and runs the real code on them, each measurement in a
separate process. This takes some minutes. The cost model is arithmetic on stated rates. Prints the tables of
docs/scale.md.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from scripts.scale.assumptions import Assumptions
from scripts.scale.made_up import make_up
from scripts.scale.measurements import MEASUREMENTS, Measured, measure_all
from scripts.scale.report import as_json, render_costs, render_measurements
from scripts.support.report import machine
from storage.command import run_command
from storage.errors import ConfigError
from storage.progress import Progress

Part = Literal["measurements", "costs"]


@dataclass(frozen=True, kw_only=True)
class SimulateScaleConfig:
    """Size of the cache, and what to print about it."""

    num_shards: int = 64_000
    """Number of shards of 15.6 million tokens to make up records for."""
    parts: tuple[Part, ...] = ("measurements", "costs")
    """What to print."""
    json: bool = False
    """Print one JSON document instead of tables."""
    assume: Assumptions = field(default_factory=Assumptions)
    """Assumptions of the cost model."""

    def __post_init__(self) -> None:
        if self.num_shards < 2:
            raise ConfigError(f"--num-shards is {self.num_shards}, expected at least 2")
        if not self.parts:
            raise ConfigError("--parts is empty, expected some of measurements, costs")


def main() -> None:
    """Measure, calculate and print."""
    config = tyro.cli(SimulateScaleConfig, prog="python -m scripts.scale", description=__doc__)
    facts = machine("cpu")
    measured = measurements(config.num_shards) if "measurements" in config.parts else []
    assumptions = config.assume if "costs" in config.parts else None
    if config.json:
        print(as_json(measured, assumptions, facts))
        return
    if measured:
        print(render_measurements(measured, facts))
    if assumptions:
        print(render_costs(assumptions))


def measurements(num_shards: int) -> list[Measured]:
    """Make up records in a temporary directory and measure the real code on them."""
    with tempfile.TemporaryDirectory(prefix="teachonce-scale-") as directory:
        made_up = make_up(Path(directory), num_shards)
        with Progress(len(MEASUREMENTS), "measure", "parts") as bar:
            measured = []
            for one in measure_all(made_up):
                measured.append(one)
                bar.update(1, last=one.what)
            return measured


if __name__ == "__main__":
    run_command(main)
