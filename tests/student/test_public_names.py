"""The public names of the student side: imported at their first use, and all there."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import student
from tests.places import ROOT

HEAVY = ("torch", "transformers", "datasets", "tokenizers", "accelerate")


def test_importing_student_pulls_in_nothing_heavy() -> None:
    code = f"import sys, student; dir(student); print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"


def test_every_lazy_name_is_public_and_known_to_type_checkers() -> None:
    tree = ast.parse(Path(student.__file__).read_text())
    (checking,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {alias.name for node in checking.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(student._LAZY) <= set(student.__all__) & imported
    for name in student.__all__:
        assert getattr(student, name).__module__.partition(".")[0] == "student"
