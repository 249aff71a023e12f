"""What another user may do here: this process without root's rights, and files that belong to somebody else.

Root loses the capabilities by which it passes permissions by, in the thread and in threads that it starts. For any
other user, its own files with the rights that another user would have on them stand for another user's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

_NOBODY = 65534
# CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER of linux/capability.h.
_PASSING_BY = 1 << 1 | 1 << 2 | 1 << 3
_VERSION_3 = 0x20080522


@contextlib.contextmanager
def without_rights() -> Iterator[None]:
    """Inside, permissions hold for this thread, even for root's."""
    if os.geteuid():
        yield
        return
    before = _capabilities()
    effective, *others = before
    _set_capabilities([effective & ~_PASSING_BY, *others])
    try:
        yield
    finally:
        _set_capabilities(before)


def give_away(root: Path, mode: int = 0o755) -> None:
    """Make `root` and everything below it another user's: directories get `mode`, files the same without execution."""
    for path in sorted([root, *root.rglob("*")], reverse=True):
        allowed = mode if path.is_dir() else mode & ~0o111
        if os.geteuid():
            path.chmod((allowed & 0o007) << 6)
        else:
            path.chmod(allowed)
            os.chown(path, _NOBODY, _NOBODY)


def _capabilities() -> list[int]:
    """Return six words: effective, permitted and inheritable for capabilities 0 to 31, then for those above."""
    words = (ctypes.c_uint32 * 6)()
    _call("capget", words)
    return list(words)


def _set_capabilities(words: list[int]) -> None:
    _call("capset", (ctypes.c_uint32 * 6)(*words))


def _call(name: str, words: ctypes.Array[ctypes.c_uint32]) -> None:
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    if getattr(ctypes.CDLL(None, use_errno=True), name)(header, words):
        raise OSError(ctypes.get_errno(), name)
