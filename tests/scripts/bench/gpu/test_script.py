"""The script for a machine with a GPU: what it runs, for how long, and what it says of a part that fails.

Programs that answer at once stand for the interpreter and for `timeout`.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.places import ROOT

_PYTHON = """#!/bin/sh
case "$*" in
    *"scripts.bench loss"*xl*) exit 3 ;;
    *"scripts.bench.gpu"*) echo "the table" ;;
    *) echo '{}' ;;
esac
"""
_TIMEOUT = """#!/bin/sh
echo "$2" >> "$LIMITS"
shift 2
exec "$@"
"""


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    for name, text in (("python", _PYTHON), ("timeout", _TIMEOUT)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": "python", "LIMITS": str(tmp_path / "limits")
    }  # fmt: skip
    script = ROOT / "scripts" / "bench" / "gpu.sh"
    return subprocess.run(
        ["bash", str(script), *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_a_part_that_fails_is_said_and_the_others_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    done = run(tmp_path, "--device", "cpu", str(folder))
    assert done.returncode == 1
    assert done.stdout == "the table\n"
    parts = [line.split("\t")[:2] for line in (folder / "parts.tsv").read_text().splitlines()]
    benches = {f"{name}-{shape}" for name in ("precompute", "loss", "step", "generate") for shape in ("124m", "xl")}
    assert {name for name, _ in parts} == {"tests", "ceilings", "compiled-124m", *benches}
    assert len(parts) == len(benches) + 3
    assert [name for name, code in parts if code != "0"] == ["loss-xl"]
    assert (folder / "generate-xl.json").read_text() == "{}\n"
    assert (folder / "table.md").read_text() == "the table\n"


def test_whatever_hangs_it_ends_within_eight_minutes(tmp_path: Path) -> None:
    run(tmp_path, "--device", "cuda", str(tmp_path / "out"))
    limits = [int(line) for line in (tmp_path / "limits").read_text().split()]
    # Nothing took time, so the last limit is the sum of all. A part that is stopped may take 5 seconds to end.
    assert limits == sorted(limits)
    assert limits[-1] + 5 + 10 <= 8 * 60


@pytest.mark.parametrize("arguments", [("--device", "gpu"), ("--device",)])
def test_an_unknown_device_is_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode in (1, 2)
    assert "cuda or cpu" in done.stderr
