"""What a machine lacks is told before the tests, with what is skipped for it."""

from __future__ import annotations

import pytest

from tests import missing


def test_only_what_is_not_here_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = (
        missing.Need("a hammer", lambda: False, "nails", "buy one"),
        missing.Need("a saw", lambda: True, "planks"),
        missing.Need("a roof", lambda: False, "rain"),
    )
    monkeypatch.setattr(missing, "NEEDS", needs)
    *told, time = missing.lines()
    assert told == ["not here: a hammer (buy one); skipped for it: nails", "not here: a roof; skipped for it: rain"]
    assert "minutes" in time


def test_every_need_can_be_asked_for() -> None:
    assert all(isinstance(need.is_here(), bool) for need in missing.NEEDS)
