"""The soak test in small, and that it notices what it is there to notice."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.faults.bench import Bench, difference, snapshot
from scripts.faults.children import Child, run_in_child
from scripts.faults.kills import Target, kill_at_steps
from scripts.faults.tally import Tally
from tests.places import ROOT


def test_a_small_soak_loses_nothing(tmp_path: Path) -> None:
    flags = ["--kills", "2", "--flips", "60", "--refusals", "2", "--out", str(tmp_path / "soak")]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.faults", *flags],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    head, *lines, total = done.stdout.splitlines()
    assert head.split() == ["fault", "where", "injected", "survived", "lost"]
    for part in (
        "precompute killed at a random time", "precompute killed at a step", "trainer killed at a random time",
        "trainer killed at a step", "flipped bit", "truncated", "refused write", "race, released together",
        "race, step by step",
    ):  # fmt: skip
        assert any(line.startswith(part) for line in lines), part
    assert any("real limit on file size" in line for line in lines)
    injected, survived, lost = total.split()[-3:]
    assert (injected, lost) == (survived, "0")


def test_a_lost_fault_is_counted_and_told() -> None:
    tally = Tally()
    tally.add("flipped bit", "footer", None)
    tally.add("flipped bit", "footer", "found by nobody")
    tally.add("truncated", "shard", None)
    assert tally.losses == ["flipped bit, footer: found by nobody"]
    assert [line.split()[-3:] for line in tally.table().splitlines()[1:]] == [
        ["2", "1", "1"], ["1", "1", "0"], ["3", "2", "1"],
    ]  # fmt: skip


def test_snapshots_that_differ_are_told_apart(tmp_path: Path) -> None:
    for name, content in (("a", "1"), ("b", "2"), ("c", "3")):
        (tmp_path / name).write_text(content)
    expected = snapshot(tmp_path)
    assert difference(snapshot(tmp_path), expected) is None
    (tmp_path / "a").write_text("0")
    (tmp_path / "b").unlink()
    (tmp_path / "d").mkdir()
    assert difference(snapshot(tmp_path), expected) == "missing: b; too many: d; other bytes: a"


def test_how_a_child_ended_is_known(tmp_path: Path) -> None:
    assert run_in_child(lambda: None).status == 0
    assert run_in_child(lambda: sys.exit(3)).status == 3
    failed = run_in_child(lambda: (tmp_path / "nothing").read_bytes())
    assert failed.status == 1
    assert failed.error_class == "FileNotFoundError (not a TeachonceError)"
    child = Child(lambda child: child.pause())
    assert child.wait_for_pause() is None
    child.kill()
    assert child.wait().status == -9


def in_place(out: Path) -> None:
    """Writes two files in their final places and trusts one that is there."""
    out.mkdir(exist_ok=True)
    for name in ("plan.json", "manifest.json"):
        if not (out / name).exists():
            (out / name).write_bytes(b"what this run is there to write")


def by_renaming(out: Path) -> None:
    """The same, each file wholly there or not there at all."""
    out.mkdir(exist_ok=True)
    for name in ("plan.json", "manifest.json"):
        (out / f".tmp-{name}").write_bytes(b"what this run is there to write")
        (out / f".tmp-{name}").replace(out / name)


@pytest.mark.parametrize(("write", "is_safe"), [(in_place, False), (by_renaming, True)])
def test_a_writer_that_leaves_half_a_file_is_caught(
    tmp_path: Path, write: Callable[[Path], None], is_safe: bool
) -> None:
    bench = Bench(directory=tmp_path, teacher=tmp_path, text=tmp_path, student_shape=tmp_path)
    target, tally = Target(bench, "toy", write), Tally()
    kill_at_steps(target, len(target.moments), random.Random(0), tally)
    assert sum(tally.injected("toy killed at a step").values()) == len(target.moments)
    assert (tally.losses == []) == is_safe
    assert is_safe or all("other bytes" in loss for loss in tally.losses)
