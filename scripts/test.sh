#!/usr/bin/env bash
# Check lint and types and run the tests. Arguments go to pytest: bash scripts/test.sh tests/storage -k manifest
set -euo pipefail
source "$(dirname "$0")/environment.sh"
.venv/bin/ruff check .
.venv/bin/ruff format --check --quiet .
.venv/bin/mypy
.venv/bin/python -m tests.missing
# Run the tests in two processes with one PyTorch thread each: more threads would compete for the cores.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q --numprocesses 2 --dist worksteal "$@"
