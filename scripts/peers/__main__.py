"""Test how storage formats handle a flipped bit and a killed writer: ours, mosaicml-streaming and litdata.

    python -m scripts.peers
    python -m scripts.peers --peers-python OTHER_ENVIRONMENT/bin/python

All formats store the same rows, and each trial judges the rows that are read, not what a library promises. The other
libraries' pinned requirements conflict with ours, so they need a separate environment, made with
`pip install mosaicml-streaming litdata`. A system that cannot be imported has an empty column. SIGKILL keeps the
operating system's page cache, so the effect of a power cut is not measured. "Right rows" after a flip in an index means
that the reader did not use that file or field. "The log" is a traceback that a thread prints to standard error while
the loop over the rows ends as if the epoch were over.
"""

from __future__ import annotations

import tyro

from scripts.peers.comparison import SYSTEMS, CompareConfig, compare
from scripts.peers.report import report
from storage.command import run_command


def main() -> None:
    """Run the trials and print the tables."""
    config = tyro.cli(CompareConfig, description=__doc__)
    print(report([compare(system, config) for system in SYSTEMS]))


if __name__ == "__main__":
    run_command(main)
