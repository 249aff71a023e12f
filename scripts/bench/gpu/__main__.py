"""Show what scripts/bench/gpu.sh measured as one table in Markdown.

python -m scripts.bench.gpu FOLDER
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from tyro.conf import Positional

from scripts.bench.gpu.table import render
from storage.command import run_command


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Show what gpu.sh measured as one table in Markdown."""

    folder: Positional[Path]
    """Folder that gpu.sh has filled: NAME-SHAPE.json of each benchmark, and parts.tsv."""


def main() -> None:
    """Print the table."""
    print(render(tyro.cli(TableConfig, prog="python -m scripts.bench.gpu").folder))


if __name__ == "__main__":
    run_command(main)
