"""What a command says when it is stopped."""

from __future__ import annotations

import sys

import pytest

from storage.command import run_command


def stop() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("world_size", "has_line"), [(None, True), ("", True), ("1", True), ("2", False)])
def test_the_line_that_goes_on_is_one_that_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], world_size: str | None, has_line: bool
) -> None:
    """Of several processes, which a launcher started, none knows the launcher's line."""
    monkeypatch.setattr(sys, "argv", ["/bin/teachonce-student", "train", "a cache"])
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world_size is not None:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(SystemExit) as stopped:
        run_command(stop)
    assert stopped.value.code == 130
    said = capsys.readouterr().err
    assert "teachonce-student: stopped; to go on, run the same line again" in said
    assert ("teachonce-student train 'a cache'" in said) is has_line
