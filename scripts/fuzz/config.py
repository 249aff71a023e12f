"""What a run of the fuzzer can be told, and what it found."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Name = Literal["manifest", "commit", "arrow", "stream", "archive"]

SECONDS_PER_INPUT = 60.0
"""An input that takes longer hangs."""

_GOLDEN = Path(__file__).parents[2] / "tests" / "storage" / "golden" / "cache"


@dataclass(frozen=True, kw_only=True)
class FuzzConfig:
    """What to fuzz, and for how long."""

    target: Name
    """What reads the inputs."""
    seconds: float = 60.0
    """How long."""
    seed: int = 0
    """Of the mutations."""
    cache: Path = _GOLDEN
    """Good cache that inputs are made from."""
    failures: Path = Path("fuzz-failures")
    """Directory for inputs that failed."""
    reproduce: Path | None = None
    """Run this input alone, in this process."""


@dataclass(kw_only=True)
class Report:
    """Inputs read, outcomes by name, and the failure with the file that holds its input."""

    num_inputs: int = 0
    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)
    failure: str = ""
    coverage: str = ""


def copy_cache(cache: Path, directory: Path) -> Path:
    """A copy of the cache in a directory that holds nothing else."""
    return Path(shutil.copytree(cache, directory / "cache"))
