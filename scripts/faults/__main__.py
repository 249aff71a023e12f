"""Hurt caches and runs on purpose, and look whether anything is lost.

    python -m scripts.faults                    # some minutes
    python -m scripts.faults --kills 20 --flips 500 --seed 1

Writers and trainers are killed at random times and at every kind of step, bits are flipped, writes are refused,
and writers race; a run afterwards must leave exactly what an undisturbed one leaves, and every damage must be
told. Prints one table; losses go to standard error, and the exit status is 1 if there are any.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import tyro

from scripts.faults.config import SoakConfig
from storage.command import run_command


def main() -> int:
    """Inject everything and print the table."""
    config = tyro.cli(SoakConfig, prog="python -m scripts.faults", description=__doc__)
    from scripts.faults.soak import soak

    directory = config.out or Path(tempfile.mkdtemp(prefix="teachonce-soak-"))
    try:
        return soak(config, directory.resolve())
    finally:
        if config.out is None:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    run_command(main)
