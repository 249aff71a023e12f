#!/usr/bin/env bash
# Lint, types and tests. Arguments go to pytest: bash scripts/test.sh tests/storage -k manifest
set -euo pipefail
source "$(dirname "$0")/environment.sh"
.venv/bin/ruff check .
.venv/bin/ruff format --check --quiet .
.venv/bin/mypy
.venv/bin/python -m pytest -q "$@"
