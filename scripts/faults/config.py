"""The settings of a soak: how many faults of each kind it injects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from storage.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SoakConfig:
    """Number of faults of each kind."""

    kills: int = 200
    """Precompute runs to kill at random times, and as many at chosen steps. Races and killed trainers are fewer."""
    flips: int = 10_000
    """Bits to flip."""
    seed: int = 0
    """Seed of the times and places of faults."""
    refusals: int | None = None
    """Writes to refuse. None refuses every step of a run with every error."""
    out: Path | None = None
    """Empty directory to work in, which is kept. None uses a temporary directory."""

    def __post_init__(self) -> None:
        if min(self.kills, self.flips, 0 if self.refusals is None else self.refusals) < 0:
            raise ConfigError("--kills, --flips and --refusals must not be negative")
        if self.out is not None and self.out.exists() and any(self.out.iterdir()):
            raise ConfigError(f"--out {self.out}: not empty; name another directory")
