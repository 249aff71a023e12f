"""How much a soak injects; every field is a flag of python -m scripts.faults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from storage.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SoakConfig:
    """How much is injected."""

    kills: int = 200
    """Precompute runs killed at random times, and as many at chosen steps; of races and trainers there are fewer."""
    flips: int = 10_000
    """Bits flipped."""
    seed: int = 0
    """Seed of where and when."""
    refusals: int | None = None
    """Writes refused; None refuses every step of a run with every error."""
    out: Path | None = None
    """Empty directory to work in, kept afterwards; by default a temporary one."""

    def __post_init__(self) -> None:
        if min(self.kills, self.flips, 0 if self.refusals is None else self.refusals) < 0:
            raise ConfigError("--kills, --flips and --refusals must not be negative")
        if self.out is not None and self.out.exists() and any(self.out.iterdir()):
            raise ConfigError(f"--out {self.out}: not empty; name another directory")
