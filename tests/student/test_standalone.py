"""The student side needs the cache and nothing else: no teacher, no network, no pipeline package."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.places import ROOT

# Runs the command line once for each list of arguments, in one process without network and without pipeline.
SCRIPT = """
import importlib.abc, json, socket, sys

class NoPipeline(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "pipeline":
            raise ImportError("the student must not import the pipeline")

sys.meta_path.insert(0, NoPipeline())
connections = []

def refuse(*args, **settings):
    connections.append(repr(args))
    raise OSError("no network")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse

import student.cli
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["teachonce-student", *arguments]
    try:
        student.cli.main()
    except SystemExit as done:
        assert not done.code, (arguments, done.code)
    print("=====")
assert not connections, connections
assert not [name for name in sys.modules if name.partition(".")[0] == "pipeline"]
"""


@pytest.fixture
def lone_cache(helpers: ModuleType, teacher_dir: Path, text_file: Path, tmp_path: Path) -> Path:
    """A cache whose teacher and text are gone."""
    teacher = shutil.copytree(teacher_dir, tmp_path / "source" / "teacher")
    text = shutil.copy(text_file, tmp_path / "source" / "documents.txt")
    helpers.precomputed(helpers.tiny_config(teacher, text, tmp_path / "cache", max_tokens=2500))
    shutil.rmtree(tmp_path / "source")
    return tmp_path / "cache"


def test_a_student_is_trained_measured_and_used_from_the_cache_alone(
    lone_cache: Path, preset: str, tmp_path: Path
) -> None:
    (tmp_path / "candidates.txt").write_text(" ran once\n knew\n learns alone\n")
    out = str(tmp_path / "student")
    commands = [
        ["train", str(lone_cache), "--out", out, "--preset", preset, "--max-steps", "3", "--device", "cpu", "--quiet"],
        ["evaluate", out, "--cache", str(lone_cache), "--json", "--quiet", "--device", "cpu"],
        ["select", out, "--prompt", "the teacher", "--candidates", str(tmp_path / "candidates.txt")],
        ["generate", out, "--prompt", "the teacher", "--max-new-tokens", "5", "--seed", "3"],
        ["generate", out, "--prompt", "the teacher", "--max-new-tokens", "5", "--candidates", "2"],
    ]
    root = ROOT
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    _, evaluated, selected, generated, candidates, _ = done.stdout.split("=====\n")
    measures = json.loads(evaluated)
    assert measures["perplexity"] > 1
    assert measures["kl_nats"] > 0
    assert sorted(line[11:] for line in selected.splitlines()) == [" knew", " learns alone", " ran once"]
    scores = [float(line[:9]) for line in selected.splitlines()]
    assert scores == sorted(scores, reverse=True)
    assert generated.strip("\n")
    scores = [float(line[:9]) for line in candidates.splitlines()]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    assert (tmp_path / "student" / "model.safetensors").is_file()
