#!/usr/bin/env bash
# Run the whole path on this machine: text, teacher, cache, student. Show the flags: bash scripts/demo.sh --help
set -euo pipefail
source "$(dirname "$0")/environment.sh"
exec .venv/bin/python -m scripts.demo "$@"
