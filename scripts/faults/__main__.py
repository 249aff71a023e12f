"""Inject faults into caches and runs, and check that nothing is lost.

    python -m scripts.faults                    # some minutes
    python -m scripts.faults --kills 20 --flips 500 --seed 1

The program kills writers and trainers at random times and at every kind of step, flips bits, refuses writes, and lets
writers race. A rerun must leave exactly the files that an undisturbed run leaves, and every damage must be reported.
Prints one table. Losses go to standard error, and the exit status is 1 if there are any.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import tyro

from scripts.faults.config import SoakConfig
from storage.command import run_command


def main() -> int:
    """Inject all faults and print the table."""
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
