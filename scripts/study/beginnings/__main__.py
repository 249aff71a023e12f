"""Compare students that begin new with students cut from their teacher, by targets, positions, rates and epochs.

    python -m scripts.study.beginnings prepare --size cpu --out study   # text and tokenizer
    python -m scripts.study.beginnings run --size cpu --out study       # in as many terminals as there are cores
    python -m scripts.study.beginnings show --out study                 # tables in Markdown

`run` trains one teacher. Then it trains students in groups that share batches, seed and teacher. `--size cpu` takes
about an hour of one idle core (added up from parts). `quick` only shows that everything runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import tyro

from scripts.study import text
from scripts.study.beginnings import report
from scripts.study.beginnings.runs import run_study
from scripts.study.beginnings.sizes import SIZES


def main() -> None:
    """Run a subcommand."""
    tyro.extras.subcommand_cli_from_dict({"prepare": prepare, "run": run, "show": show}, description=__doc__)


def prepare(size: Literal["quick", "cpu"], out: Path = Path("study")) -> None:
    """Collect text and tokenize it."""
    print(json.dumps(text.prepare(out, SIZES[size].vocab_size, SIZES[size].max_megabytes)))


def run(size: Literal["quick", "cpu"], out: Path = Path("study"), only: tuple[str, ...] = ()) -> None:
    """Train the teacher and all students, or those of some tables. Several processes may run; a rerun continues."""
    run_study(SIZES[size], out, only)


def show(out: Path = Path("study")) -> None:
    """Print tables in Markdown of the runs that are finished."""
    print(report.tables(report.read_results(out)))


if __name__ == "__main__":
    main()
