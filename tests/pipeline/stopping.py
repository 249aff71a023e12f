"""Runs of precompute that fail at a call."""

from __future__ import annotations

from typing import Any

import pytest


class Stop(Exception):
    """The injected fault."""


def fail_after(monkeypatch: pytest.MonkeyPatch, name: str, calls: int) -> None:
    """Let `name` of a module of a run work a number of times and then raise."""
    from storage.writing import card_and_manifest, directory_destination

    modules = (card_and_manifest, directory_destination)
    module = next(module for module in modules if hasattr(module, name))
    original, count = getattr(module, name), iter(range(calls))

    def failing(*args: Any, **settings: Any) -> Any:
        if next(count, None) is None:
            raise Stop
        return original(*args, **settings)

    monkeypatch.setattr(module, name, failing)
