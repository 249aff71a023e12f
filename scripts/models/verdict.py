"""What is found of a family: one word, and why."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path

YES, BY_ROW, SOFT_TARGETS_ONLY, NO, WRONG, FAILED = (
    "yes",
    "a document a row",
    "soft targets only",
    "no",
    "wrong",
    "failed",
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`word` is one of the above; `why` is empty for YES and BY_ROW, else a line."""

    word: str
    why: str = ""


def refusal(error: Exception, name: str, path: Path) -> str:
    """Return the line of an error, with the name of the family in place of its path."""
    return str(error).splitlines()[0].replace(str(path), name)


def failure(error: BaseException) -> Verdict:
    """Return the verdict for an exception that is no refusal: its class, its words and where it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    words = " ".join(str(error).split())[:200]
    return Verdict(word=FAILED, why=f"{type(error).__name__}: {words} ({Path(frame.filename).name}:{frame.lineno})")
