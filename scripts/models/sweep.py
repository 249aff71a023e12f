"""Try families one after the other, and keep what was found in a file, so that a sweep can be continued."""

from __future__ import annotations

import functools
import json
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers

from scripts.models.families import Family, families
from scripts.models.guarded import guarded
from scripts.models.materials import make_student_cache
from scripts.models.students import try_student
from scripts.models.teachers import try_teacher
from scripts.models.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was found of a family."""

    family: str
    teacher: Verdict
    student: Verdict
    seconds: float


def read_found(path: Path) -> dict[str, Found]:
    """Return what the lines of a file of results say, by family; of several lines of one, the last."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {
        found["family"]: Found(
            family=found["family"],
            teacher=Verdict(**found["teacher"]),
            student=Verdict(**found["student"]),
            seconds=found["seconds"],
        )
        for found in map(json.loads, lines)
    }


def sweep(names: list[str], results: Path) -> Iterator[Found]:
    """Try each named family in a process of its own; append a line to `results` and yield it."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    known = families()
    with tempfile.TemporaryDirectory(prefix="teachonce-models-") as directory:
        cache = guarded(functools.partial(make_student_cache, Path(directory)))
        for name in names:
            found = _try(known[name], cache)
            with results.open("a") as lines:
                lines.write(json.dumps(asdict(found)) + "\n")
            yield found


def _try(family: Family, cache: Path) -> Found:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="teachonce-model-") as directory:
        as_teacher, as_student = Path(directory) / "teacher", Path(directory) / "student"
        as_teacher.mkdir()
        as_student.mkdir()
        teacher = guarded(functools.partial(try_teacher, family, as_teacher))
        student = guarded(functools.partial(try_student, family, cache, as_student))
    return Found(family=family.name, teacher=teacher, student=student, seconds=round(time.perf_counter() - began, 2))
