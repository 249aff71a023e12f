"""Settings of the benchmarks. Every field is a flag of python -m scripts.bench."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from storage.errors import ConfigError

GPT2_124M = {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50_257}
TINY = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 64, "vocab_size": 300}
"""Shapes of teachers. Their weights are random, because speed does not depend on them."""

Name = Literal["precompute", "loss", "step", "stream", "generate", "write", "scale", "all"]


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Measure this project and its references in turn, and print the ratios."""

    name: Positional[Name]
    """Benchmark to run; all runs every one."""
    json: bool = False
    """Print one JSON document instead of a table."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device that models run on."""
    size: Literal["full", "tiny"] = "full"
    """full uses the shapes of the published targets. tiny takes seconds and only shows that the benchmark runs."""
    rounds: int = 7
    """How often each variant is measured. Medians are printed."""
    peers_python: str | None = None
    """Python that has the other libraries of stream. None makes an environment once, in the user's cache directory."""
    threads: int | None = None
    """Number of PyTorch threads. None leaves the number to PyTorch."""

    def __post_init__(self) -> None:
        for name, value in (("rounds", self.rounds), ("threads", self.threads)):
            if value is not None and value < 1:
                raise ConfigError(f"--{name} is {value}, expected at least 1")
