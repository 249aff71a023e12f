"""run.json: the facts that decided the weights of a finished student, as training wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from storage.reading.cache import Cache
from student.errors import CheckpointError

RUN_NAME = "run.json"


def is_of_other_rows(run: dict[str, Any], cache: Cache) -> bool:
    """Whether run.json says that a student was trained on other rows than the cache's; False if it does not say."""
    return run.get("cache_sha256") not in (None, cache.rows_sha256)


def read_run(student: Path) -> dict[str, Any]:
    """Return the content of run.json, {} for a student without one. Raise CheckpointError when it is damaged."""
    path = student / RUN_NAME
    if not path.is_file():
        return {}
    try:
        run = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(str(path), str(error)) from error
    if not isinstance(run, dict):
        raise CheckpointError(str(path), "not a JSON object")
    return run
