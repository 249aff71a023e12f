"""The main job from end to end: teacher once, cache, student, and a comparison with training on labels alone.

    bash scripts/demo.sh                       # trains a small teacher first; no download
    bash scripts/demo.sh --teacher gpt2 --data Salesforce/wikitext:wikitext-103-raw-v1

Every stage is a command in a process of its own. Run it again and finished stages are reused.
"""

from __future__ import annotations

import sys

import tyro

from scripts.demo.demo import DemoConfig, run_demo
from storage.command import run_command

if __name__ == "__main__":
    sys.argv[0] = "bash scripts/demo.sh"
    run_command(lambda: run_demo(tyro.cli(DemoConfig, description=__doc__)))
