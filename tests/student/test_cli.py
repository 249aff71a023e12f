"""teachonce-student before it does anything: light imports, one line for a wrong flag."""

from __future__ import annotations

import pytest

from tests.commands import python, refused

HEAVY = ("torch", "transformers", "datasets", "pyarrow.dataset")
TRAIN = ["train", "c", "--out", "o"]


@pytest.mark.parametrize("module", ["student.cli", "student"])
def test_importing_a_command_loads_nothing_heavy(module: str) -> None:
    done = python(f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("module", "arguments", "told"),
    [
        ("student.cli", [*TRAIN, "--max-steps", "0"], "--max-steps is 0, expected at least 1"),
        (
            "student.cli",
            [*TRAIN, "--mix.beams", "-1"],
            "--mix weights are (None, None, -1.0, None), expected none below 0",
        ),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_code_2(
    module: str, arguments: list[str], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    errors = refused(module, *arguments, capfd=capfd)
    assert f"error: {told}" in errors
    assert len(errors.strip().splitlines()) == 1
