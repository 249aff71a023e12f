"""Let several processes work on one study: each result is made once, by whoever locks it first."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scripts.study import text
from scripts.study.networks import TeacherConfig, train_teacher


def shared_teacher(config: TeacherConfig, out: Path, train: Tensor, device: torch.device) -> Any:
    """Return the teacher in OUT/teacher.pt. One process trains it, and the others wait."""
    with (out / "teacher.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return train_teacher(config, out / "teacher.pt", train, text.read_facts(out)["vocab_size"], device)


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[Path | None]:
    """Lock a run and yield the path of its results. Yield None when it is finished or locked by another process."""
    with path.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield None if path.is_file() else path
