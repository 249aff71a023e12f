"""Settings of the benchmarks. Every field is a flag of python -m scripts.bench."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from storage.errors import ConfigError

GPT2_124M = {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50_257}
GPT2_XL = {"n_layer": 48, "n_embd": 1600, "n_head": 25, "n_positions": 1024, "vocab_size": 50_257}
TINY = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 64, "vocab_size": 300}
"""Shapes of models. Their weights are random, because speed does not depend on them."""

Name = Literal["loss", "step", "write", "stream", "scale", "precompute", "generate", "all", "ceilings", "compiled"]
"""In the order of `all`. Loss and step come first: once a teacher is loaded, the process keeps the memory it frees."""
MODULES = {"ceilings": "gpu.ceilings", "compiled": "gpu.compiled"}
"""Modules of the benchmarks that are not called by their names. `all` leaves these out; gpu.sh runs them."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Measure this project and its references in turn, and print the ratios."""

    name: Positional[Name]
    """Benchmark to run; all runs every one but ceilings and compiled, which belong to gpu.sh."""
    json: bool = False
    """Print one JSON document instead of a table."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device that models run on."""
    size: Literal["full", "gpu", "tiny"] = "full"
    """full uses the shapes of the published targets, gpu enough tokens at a time for a large GPU. tiny takes seconds
    and only shows that the benchmark runs."""
    shape: Literal["124m", "xl"] = "124m"
    """Model of precompute and generate, and with --size gpu of loss, step and compiled: GPT-2's 124 million parameters,
    or the 1.5 billion of GPT-2 XL. With --size tiny it is always the same tiny one."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Arithmetic of precompute, loss and generate. None measures both."""
    rounds: int = 7
    """How often each variant is measured. Medians are printed."""
    peers_python: str | None = None
    """Python that has the other libraries of stream. None makes an environment once, in the user's cache directory."""
    threads: int | None = None
    """Number of PyTorch threads. None leaves the number to PyTorch."""

    @property
    def model(self) -> dict[str, int]:
        """Settings of GPT2Config."""
        return TINY if self.size == "tiny" else {"124m": GPT2_124M, "xl": GPT2_XL}[self.shape]

    @property
    def dtypes(self) -> tuple[Literal["float32", "bfloat16"], ...]:
        """Arithmetics to measure."""
        return ("float32", "bfloat16") if self.dtype is None else (self.dtype,)

    @property
    def saved_dtype(self) -> Literal["float32", "bfloat16"]:
        """Format of a saved model from which models of all `dtypes` are loaded."""
        return self.dtype or "float32"

    def __post_init__(self) -> None:
        for name, value in (("rounds", self.rounds), ("threads", self.threads)):
            if value is not None and value < 1:
                raise ConfigError(f"--{name} is {value}, expected at least 1")
