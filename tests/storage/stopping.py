"""Runs that write a cache, stopped at every step at which they publish something, and run again."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class Stop(BaseException):
    """The injected end of a run."""


def snapshot(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def stop_everywhere(
    run: Callable[[Path], object],
    base: Path,
    expected: dict[str, bytes],
    *,
    after: bool,
    publishers: tuple[str, ...] = ("link", "replace"),
) -> int:
    """Stop `run` once at each of its publications, each time in a directory of its own, and run it again there.

    What a stopped run left is no cache, or the whole one when it stopped after its last publication; the second run
    ends with the files in `expected`. Returns how many publications there are.
    """
    step = 0
    while True:
        out = base / f"stopped-{step}"
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, step, after=after, publishers=publishers)
            try:
                run(out)
            except Stop:
                is_published = (out / "manifest.json").exists()
            else:
                return step
        assert not is_published or (after and snapshot(out) == expected), f"published too early, step {step}"
        run(out)
        assert snapshot(out) == expected, f"other bytes after a stop at step {step}"
        step += 1


def stop_at(patch: pytest.MonkeyPatch, step: int, *, after: bool, publishers: tuple[str, ...]) -> None:
    """Stop before or after call number `step` of the functions of `os` that publish something."""
    count = itertools.count()

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            now = next(count)
            if now == step and not after:
                raise Stop
            result = original(*arguments, **options)
            if now == step and after:
                raise Stop
            return result

        return counted

    for name in publishers:
        patch.setattr(os, name, wrap(getattr(os, name)))
