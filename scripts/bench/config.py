"""What a benchmark can be told; every field is a flag of python -m scripts.bench."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from storage.errors import ConfigError

GPT2_124M = {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50_257}
TINY = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 64, "vocab_size": 300}
"""Shapes of teachers, whose weights are random: speed does not depend on what a model has learnt."""

Name = Literal["precompute", "loss", "step", "stream", "generate", "write", "scale", "all"]


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Measure ratios between what this project does and its reference, variants interleaved, and print them."""

    name: Positional[Name]
    """Which benchmark."""
    json: bool = False
    """Print one JSON document instead of a table."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where models run."""
    size: Literal["full", "tiny"] = "full"
    """full: the shapes of the published targets; tiny: seconds, to see that the benchmark runs."""
    rounds: int = 7
    """Times each variant is measured; medians are printed."""
    peers_python: str | None = None
    """Python that has the peers of stream; None: of an environment made, once, in the user's cache directory."""
    threads: int | None = None
    """Threads of PyTorch; None leaves its choice."""

    def __post_init__(self) -> None:
        for name, value in (("rounds", self.rounds), ("threads", self.threads)):
            if value is not None and value < 1:
                raise ConfigError(f"--{name} is {value}, expected at least 1")
