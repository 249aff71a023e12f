"""Train a student by a recipe: python -m scripts.loops RECIPE CACHE START OUT; docs/loops.md shows the recipes."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Literal

import tyro
from tyro.conf import Positional


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Train a student by a recipe; run again, it goes on after its last checkpoint."""

    recipe: Positional[Literal["plain", "with_accelerate", "with_lightning", "with_trainer", "with_trl"]]
    """File of this folder."""
    cache: Positional[str]
    """Directory or URL of a cache."""
    start: Positional[str]
    """Directory of the model that training starts from."""
    out: Positional[str]
    """Directory of the student and of its checkpoints."""
    max_steps: int = 1000
    """Optimiser steps."""
    batch_rows: int = 16
    """Blocks of soft targets per step, over all processes."""
    save_every: int = 200
    """Steps between checkpoints."""


def main() -> None:
    """Run the recipe."""
    settings = vars(tyro.cli(Settings))
    importlib.import_module(f"scripts.loops.{settings.pop('recipe')}").train(**settings)


if __name__ == "__main__":
    main()
