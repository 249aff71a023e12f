"""Run the teacher once, train a student from the cache, and compare it with one trained on labels alone.

    bash scripts/demo.sh                       # trains a small teacher first; no download
    bash scripts/demo.sh --teacher gpt2 --data Salesforce/wikitext:wikitext-103-raw-v1

Each stage runs a command in a separate process. If you run the demo again, it reuses finished stages.
"""

from __future__ import annotations

import sys

import tyro

from scripts.demo.demo import DemoConfig, run_demo
from storage.command import run_command

if __name__ == "__main__":
    sys.argv[0] = "bash scripts/demo.sh"
    run_command(lambda: run_demo(tyro.cli(DemoConfig, description=__doc__)))
