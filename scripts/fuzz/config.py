"""Settings and results of a run of the fuzzer."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Name = Literal["manifest", "commit", "arrow", "stream", "archive"]

SECONDS_PER_INPUT = 60.0
"""An input that takes longer counts as a hang."""

_GOLDEN = Path(__file__).parents[2] / "tests" / "storage" / "golden" / "cache"


@dataclass(frozen=True, kw_only=True)
class FuzzConfig:
    """Target of the fuzzer, and how long to fuzz it."""

    target: Name
    """Reader of the inputs."""
    seconds: float = 60.0
    """Seconds to fuzz."""
    seed: int = 0
    """Seed of the mutations."""
    cache: Path = _GOLDEN
    """Undamaged cache that inputs are made from."""
    failures: Path = Path("fuzz-failures")
    """Directory for inputs that failed."""
    reproduce: Path | None = None
    """Read only this input, in this process."""


@dataclass(kw_only=True)
class Report:
    """Number of inputs, outcomes by name, coverage, and the failure with the file of its input."""

    num_inputs: int = 0
    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)
    failure: str = ""
    coverage: str = ""


def copy_cache(cache: Path, directory: Path) -> Path:
    """Copy the cache to `directory`/cache and return the copy."""
    return Path(shutil.copytree(cache, directory / "cache"))
