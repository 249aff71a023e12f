"""Commands run in a process of their own, or in this one."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from tests.places import ROOT


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def refused(module: str, *arguments: str, capfd: pytest.CaptureFixture[str]) -> str:
    """What a command that ends with exit code 2 says, in this process, in which everything is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *arguments])
        with pytest.raises(SystemExit) as done:
            importlib.import_module(module).main()
    assert done.value.code == 2
    return capfd.readouterr().err
