"""Writes tests/storage/golden/version_3 anew: a tiny cache, and in expected.json the values that it always decodes to.

    PYTHONPATH=. python tests/storage/make_golden.py

Only a new format version is a reason to write another golden cache. Those of version 1, in golden itself, and of
version 2 stay as an earlier teachonce wrote them.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from conftest import beam_rows, sample_rows, small_identity, soft_target_rows, write_small_cache

DIRECTORY = Path(__file__).parent / "golden" / "version_3"
# Five blocks make two record batches; expected.json holds the four of the first.
NUM_ROWS = {"soft_targets": 5, "samples": 2, "beams": 2}


def plain(value: Any) -> Any:
    """Numpy and dataclasses as JSON; -Infinity is written as Python's json does."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def main() -> None:
    """Replace the cache and the expected values."""
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    settings = small_identity().config["soft_targets"] | {
        "is_wanted": True,
        "unknown_columns": ["entropy", "label_logprob"],
    }
    rows_per_shard = {kind: {"train": [count]} for kind, count in NUM_ROWS.items()}
    write_small_cache(DIRECTORY / "cache", rows_per_shard, config={"soft_targets": settings})
    rows = {
        "soft_targets": dataclasses.replace(soft_target_rows(4, marks_wanted=True), entropy=None, label_logprob=None),
        "samples": sample_rows(2),
        "beams": beam_rows(2),
    }
    expected = {kind: plain(values) for kind, values in rows.items()}
    (DIRECTORY / "expected.json").write_text(json.dumps(expected, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
