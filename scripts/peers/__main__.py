"""How storage formats take a flipped bit and a killed writer: ours beside mosaicml-streaming and litdata.

    python -m scripts.peers
    python -m scripts.peers --peers-python OTHER_ENVIRONMENT/bin/python

All store the same rows, and each trial judges the rows that come back, not what a library promises. The peers' pinned
requirements exclude ours, so they want an environment of their own, made with
`pip install mosaicml-streaming litdata`; a system that cannot be imported has an empty column. SIGKILL leaves the
operating system's cache alone: what a power cut does is not measured. "Right rows" after a flip in an index means that
the reader made nothing of that file or field; "the log" is a traceback that a thread leaves on standard error while the
loop over the rows ends as if the epoch were over.
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
