"""Rows of a JSON file: an object a line, or one array of objects.

Each row stands for itself. Readers that make columns of rows infer a type for each column, see dates in texts, and fail
where a type changes or a key is new, be it of a column that nobody reads.
"""

from __future__ import annotations

import codecs
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.data_files import open_binary, refuse_utf16
from pipeline.errors import JsonRowError
from storage.errors import first_line

# White space, and the mark that UTF-8 may begin with.
_BLANK = b" \t\r\n" + codecs.BOM_UTF8
# Half of a character: JSON can escape one, UTF-8 has none.
_LONE = re.compile("[\ud800-\udfff]")


def json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file, in its order; blank lines are passed over, an array is read as a whole.

    Lone surrogates become U+FFFD, which is told. Raises JsonRowError, NoSuchDataError for UTF-16, and OSError.
    """
    refuse_utf16(path)
    num_replaced = 0
    try:
        for place, value in _values(path):
            if not isinstance(value, dict):
                raise JsonRowError(str(path), place, f"holds {json.dumps(value)[:40]}")
            row, replaced = _without_lone_surrogates(value)
            num_replaced += replaced
            yield row
    finally:  # also when who asked has read enough
        if num_replaced:
            print(f"{path}: {num_replaced:,} lone surrogates were read as U+FFFD", file=sys.stderr)


def _values(path: Path) -> Iterator[tuple[str, Any]]:
    """Each value, and what to call its place."""
    with open_binary(path) as binary, io.BufferedReader(binary) as file:
        lines = ((number, line) for number, line in enumerate(file, 1) if line.strip(_BLANK))
        for index, (number, line) in enumerate(lines):
            if index == 0 and line.lstrip(_BLANK).startswith(b"["):
                array = _parse(line + file.read(), path, number)
                yield from ((f"item {place} of the array", item) for place, item in enumerate(array, 1))
                return
            yield f"line {number}", _parse(line.rstrip(b"\r\n"), path, number)


def _parse(content: bytes, path: Path, number: int) -> Any:
    """JSON that begins in line `number`."""
    try:
        return json.loads(content.decode("utf-8-sig" if number == 1 else "utf-8"))
    except json.JSONDecodeError as error:
        line = f"line {number + error.lineno - 1}"
        raise JsonRowError(str(path), line, f"is not JSON ({error.msg}, column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise JsonRowError(str(path), f"line {number}", f"is not UTF-8 ({error.reason})") from error
    except (ValueError, RecursionError) as error:  # too many digits, or too deep
        raise JsonRowError(str(path), f"line {number}", f"cannot be read ({first_line(error)})") from error


def _without_lone_surrogates(value: Any) -> tuple[Any, int]:
    """The value with U+FFFD for each of them, and their number."""
    if isinstance(value, str):
        try:
            value.encode()  # which takes a tenth of the time of a search
        except UnicodeEncodeError:
            return _LONE.subn("\ufffd", value)
        return value, 0
    if isinstance(value, list):
        items = [_without_lone_surrogates(item) for item in value]
        return [item for item, _ in items], sum(count for _, count in items)
    if isinstance(value, dict):
        pairs = {key: _without_lone_surrogates(item) for key, item in value.items()}
        return {key: item for key, (item, _) in pairs.items()}, sum(count for _, count in pairs.values())
    return value, 0
