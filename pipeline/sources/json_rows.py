"""Read the rows of a JSON file: objects, usually one per line, or one array of objects.

Each row is parsed by itself. pyarrow.json and pandas.read_json turn rows into columns: they infer a type for each
column and take some texts for dates. Arrow fails where the type of a column changes, even if the column is not used.
ijson would be a new dependency.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import JsonRowError
from pipeline.sources.data_files import open_range, place_of, refuse_utf16
from storage.errors import first_line
from storage.progress import tell

# Allow tabs and other control characters inside strings, as most readers do.
_DECODER = json.JSONDecoder(strict=False)
_SPACE = re.compile(r"[ \t\r\n]*")
_READ_BYTES = 1 << 16
# A lone surrogate is half of a character. JSON can escape it; UTF-8 cannot encode it.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def json_ranges(path: Path, wished: list[int]) -> list[tuple[int, int | None]]:
    """Return ranges [start, stop) of bytes, cut behind lines, that hold a whole file; a stop of None is its end.

    wished: ascending bytes, behind each of which to cut at the next end of a line. Do not cut a file whose first value
    goes on in a second line. Raises OSError.
    """
    cuts = [0]
    with path.open("rb") as file:
        first = next((line for line in file if line.removeprefix(codecs.BOM_UTF8).strip()), b"")
        for wish in [] if _is_cut(first.removeprefix(codecs.BOM_UTF8)) else wished:
            if wish < cuts[-1]:
                continue
            end = _end_of_line(file, wish)
            if end >= path.stat().st_size:
                break
            cuts.append(end)
    return list(zip(cuts, [*cuts[1:], None], strict=True))


def json_rows(path: Path, start: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, or of one of its json_ranges, in order.

    Read a file as a whole if its first value continues on a second line. Replace lone surrogates by U+FFFD and print
    their number. Raises JsonRowError, OSError, NoSuchDataError for UTF-16.
    """
    refuse_utf16(path)
    where = place_of(path, start)
    return checked_rows(where, _values(path, start, stop, where))


def checked_rows(where: str, values: Iterable[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the rows among the values of a file, each with the name of its place. Raises JsonRowError."""
    num_replaced = 0
    try:
        for place, value in values:
            if not isinstance(value, dict):
                raise JsonRowError(where, place, f"holds {json.dumps(value)[:40]}")
            try:
                row, replaced = _without_lone_surrogates(value)
            except RecursionError as error:
                raise JsonRowError(where, place, f"cannot be read ({first_line(error)})") from error
            num_replaced += replaced
            yield row
    finally:  # runs also when the caller stops early
        if num_replaced:
            tell(f"{where}: {num_replaced:,} lone surrogates were read as U+FFFD")


def _end_of_line(file: io.BufferedReader, start: int) -> int:
    """Return the place behind the first end of a line at or behind `start`, or the end of the file."""
    file.seek(start)
    while chunk := file.read(_READ_BYTES):
        if (place := chunk.find(b"\n")) >= 0:
            return start + place + 1
        start += len(chunk)
    return start


def _values(path: Path, start: int, stop: int | None, where: str) -> Iterator[tuple[str, Any]]:
    """Yield the name of each value's place, such as "line 3", and the value."""
    with open_range(path, start, stop) as file:
        is_first = start == 0
        for number, line in enumerate(file, 1):
            content = line.removeprefix(codecs.BOM_UTF8) if is_first and number == 1 else line
            if not content.strip():
                continue
            if is_first and _is_cut(content):
                content += file.read()
            for place, value in parse(content, where, number):
                if is_first and isinstance(value, list):
                    yield from ((f"item {item} of the array", found) for item, found in enumerate(value, 1))
                else:
                    yield place, value
                is_first = False


def is_one_row_a_line(head: bytes) -> bool:
    """Return whether a file that begins with `head` has one row a line: no array, and no row of several lines."""
    content = head.removeprefix(codecs.BOM_UTF8).lstrip()
    first, end, _ = content.partition(b"\n")
    return not content.startswith(b"[") and not (end and _is_cut(first))


def _is_cut(line: bytes) -> bool:
    """Return whether the line is valid JSON up to its end but not complete, so that the next line continues it."""
    try:
        text = line.decode().strip()
        _DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text)
    except (ValueError, RecursionError):
        pass
    return False


def parse(content: bytes, where: str, number: int) -> Iterator[tuple[str, Any]]:
    """Yield the place and the value of each JSON value in `content`, which begins in line `number` of `where`.

    Raises JsonRowError.
    """
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
        raise JsonRowError(where, place, f"is not JSON ({error.msg}, column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise JsonRowError(where, f"line {line}", f"is not UTF-8 ({error.reason})") from error
    except (ValueError, RecursionError) as error:  # a number has too many digits, or the nesting is too deep
        raise JsonRowError(where, f"line {line}", f"cannot be read ({first_line(error)})") from error


def _without_lone_surrogates(value: Any) -> tuple[Any, int]:
    """Return the value with each lone surrogate replaced by U+FFFD, and the number of replacements."""
    if isinstance(value, str):
        try:
            value.encode()  # takes a tenth of the time of a search
        except UnicodeEncodeError:
            return _LONE_SURROGATE.subn("\ufffd", value)
        return value, 0
    if isinstance(value, list):
        items = [_without_lone_surrogates(item) for item in value]
        return [item for item, _ in items], sum(count for _, count in items)
    if isinstance(value, dict):
        pairs = {key: _without_lone_surrogates(item) for key, item in value.items()}
        return {key: item for key, (item, _) in pairs.items()}, sum(count for _, count in pairs.values())
    return value, 0
