#!/usr/bin/env bash
# The whole path on this machine: text → teacher, once → cache → student. Flags: bash scripts/demo.sh --help
set -euo pipefail
source "$(dirname "$0")/environment.sh"
exec .venv/bin/python -m scripts.demo "$@"
