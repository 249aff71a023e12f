"""Run a teacher once, train three students without it, and compare them: on labels alone, from the cache, and cut.

    bash scripts/demo.sh                       # with the small teacher and the text that lie beside the demo
    bash scripts/demo.sh --teacher gpt2 --data Salesforce/wikitext:wikitext-103-raw-v1

Each stage runs commands that you could type. If you run the demo again, it reuses finished stages.
"""

from __future__ import annotations

import sys

import tyro

from scripts.demo.demo import DemoConfig, run_demo
from storage.command import run_command

if __name__ == "__main__":
    sys.argv[0] = "bash scripts/demo.sh"
    run_command(lambda: run_demo(tyro.cli(DemoConfig, description=__doc__)))
