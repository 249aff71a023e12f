"""Rows of a JSON file: objects, by custom one a line, or one array of them.

Each row stands for itself. pyarrow.json and pandas.read_json make columns of rows: they infer a type for each column,
see dates in texts, and Arrow fails where a type changes, be it of a column that nobody reads. ijson is no dependency.
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

from pipeline.corpus.data_files import open_binary, refuse_utf16
from pipeline.errors import JsonRowError
from storage.errors import first_line

# As most readers, this one lets tabs and the like stand in strings.
_DECODER = json.JSONDecoder(strict=False)
_SPACE = re.compile(r"[ \t\r\n]*")
# Half of a character: JSON can escape one, UTF-8 has none.
_LONE = re.compile("[\ud800-\udfff]")


def json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file, in its order. An array, or objects that go over several lines, are read as a whole.

    Lone surrogates become U+FFFD, which is told. Raises JsonRowError, NoSuchDataError for UTF-16, and OSError.
    """
    refuse_utf16(path)
    num_replaced = 0
    try:
        for place, value in _values(path):
            if not isinstance(value, dict):
                raise JsonRowError(str(path), place, f"holds {json.dumps(value)[:40]}")
            try:
                row, replaced = _without_lone_surrogates(value)
            except RecursionError as error:
                raise JsonRowError(str(path), place, f"cannot be read ({first_line(error)})") from error
            num_replaced += replaced
            yield row
    finally:  # also when who asked has read enough
        if num_replaced:
            print(f"{path}: {num_replaced:,} lone surrogates were read as U+FFFD", file=sys.stderr)


def _values(path: Path) -> Iterator[tuple[str, Any]]:
    """Each value, and what to call its place."""
    with open_binary(path) as binary, io.BufferedReader(binary) as file:
        is_first = True
        for number, line in enumerate(file, 1):
            content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not content.strip():
                continue
            if is_first and _is_cut(content):
                content += file.read()
            for place, value in _parse(content, path, number):
                if is_first and isinstance(value, list):
                    yield from ((f"item {item} of the array", found) for item, found in enumerate(value, 1))
                else:
                    yield place, value
                is_first = False


def _is_cut(line: bytes) -> bool:
    """Whether JSON that is sound so far goes on behind the line."""
    try:
        text = line.decode().strip()
        _DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text)
    except (ValueError, RecursionError):
        pass
    return False


def _parse(content: bytes, path: Path, number: int) -> Iterator[tuple[str, Any]]:
    """The values, one or more, of a text that begins in line `number`, and their places."""
    line, seen = number, 0
    try:
        text = content.decode().rstrip()
        start = len(text) - len(text.lstrip())
        while start < len(text):
            line, seen = line + text.count("\n", seen, start), start
            value, end = _DECODER.raw_decode(text, start)
            yield f"line {line}", value
            start = _SPACE.match(text, end).end()  # type: ignore[union-attr]
    except json.JSONDecodeError as error:
        place = f"line {number + error.lineno - 1}"
        raise JsonRowError(str(path), place, f"is not JSON ({error.msg}, column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise JsonRowError(str(path), f"line {line}", f"is not UTF-8 ({error.reason})") from error
    except (ValueError, RecursionError) as error:  # too many digits, or too deep
        raise JsonRowError(str(path), f"line {line}", f"cannot be read ({first_line(error)})") from error


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
