"""Read rows of JSON lines, one object a line, and the parts of a server's answer in them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage.errors import first_line
from storage.importing.errors import ImportRowError, ImportSourceError


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of each row, such as "FILE, line 3", and its object; blank lines are left out.

    The file may be compressed, as its last suffix says. Raise ImportRowError for a line that is no object,
    ImportSourceError for a file that cannot be read.
    """
    try:
        with io.BufferedReader(pa.input_stream(str(path))) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield (where := f"{path}, line {number}"), _object(line, where)
    except (OSError, pa.ArrowException) as error:
        raise ImportSourceError(str(path), f"cannot be read ({first_line(error)})") from error


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ImportRowError(where, f"is not one JSON object ({first_line(error)})") from error
    if not isinstance(row, dict):
        raise ImportRowError(where, f"holds {json.dumps(row):.40}, expected an object")
    return row


def answers(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what a row says of each continuation, beside what it says of the prompt.

    A row is such an object itself, or holds several in `choices` (a server's answer) or `outputs` (vLLM's
    RequestOutput). In the output of a batch, the answer is `response.body`.
    """
    response = row.get("response")
    if isinstance(response, dict) and isinstance(response.get("body"), dict):
        row = row | response["body"]
    for name in ("choices", "outputs"):
        if isinstance(several := row.get(name), list) and all(isinstance(one, dict) for one in several):
            yield from (row | {key: value for key, value in one.items() if value is not None} for one in several)
            return
    yield row
