"""Writes tests/storage/golden anew: a tiny cache, and in expected.json the values that it must always decode to.

    python tests/storage/make_golden.py

Only a new format version is a reason to run it: the files that are there must stay readable.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from conftest import beam_rows, sample_rows, soft_target_rows, write_small_cache

GOLDEN = Path(__file__).parent / "golden"
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
    shutil.rmtree(GOLDEN / "cache", ignore_errors=True)
    write_small_cache(GOLDEN / "cache", {kind: {"train": [count]} for kind, count in NUM_ROWS.items()})
    rows = {
        "soft_targets": soft_target_rows(4),
        "samples": sample_rows(2),
        "beams": beam_rows(2),
    }
    expected = {kind: plain(values) for kind, values in rows.items()}
    (GOLDEN / "expected.json").write_text(json.dumps(expected, sort_keys=True) + "\n")
    (GOLDEN / ".gitattributes").write_text("* -text\n")


if __name__ == "__main__":
    main()
