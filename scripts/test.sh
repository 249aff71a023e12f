#!/usr/bin/env bash
# Lint, types and tests. Arguments go to pytest: bash scripts/test.sh tests/storage -k manifest
set -euo pipefail
source "$(dirname "$0")/environment.sh"
.venv/bin/ruff check .
.venv/bin/ruff format --check --quiet .
.venv/bin/mypy
# Two processes of tests; threads of PyTorch on top of them would be in each other's way.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q --numprocesses 2 --dist worksteal "$@"
