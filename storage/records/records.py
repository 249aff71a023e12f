"""Read and write JSON files that hold their own sha256: plan.json, manifest.json and the commit records.

The key "record_sha256" is the sha256 of the canonical JSON (sorted keys, no spaces, ASCII) of all other keys.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import stat
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from storage.disk.files import IfTaken, write_file
from storage.errors import MissingFileError, RecordError, UnreadableFileError

# A manifest of 64,000 shards is about 20 MB; no real cache needs ten times as much.
MAX_RECORD_BYTES = 256 << 20
LARGEST_INT = (1 << 63) - 1
_MAX_DEPTH = 64
_LINE_BREAK = re.compile(rb"\n *")  # never inside a string, where JSON escapes a line break
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*')
_JSON_TYPES: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "str": str,
    "float": (int, float),
    "dict": dict,
    "tuple": list,
}

Record = TypeVar("Record")


def write_record(path: Path, content: dict[str, Any], if_taken: IfTaken = "replace") -> None:
    """Publish `content` with its checksum. Raise WriteRefusedError when the operating system refuses the write."""
    text = json.dumps(_sealed(content, _checksum(content)), indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_file(path, text.encode(), if_taken)


def read_record(path: Path) -> dict[str, Any]:
    """Read a record and return its content without the checksum; raise MissingFileError or RecordError."""
    return parse_record(read_record_bytes(path), path)


def read_record_bytes(path: Path) -> bytes:
    """Return the bytes of a record without parsing them.

    Raise MissingFileError, UnreadableFileError when the system refuses to read it, or RecordError when `path` is not a
    file or is larger than MAX_RECORD_BYTES.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise MissingFileError(str(path)) from error
    if not stat.S_ISREG(status.st_mode):
        raise RecordError(str(path), "not a file")
    num_bytes = status.st_size
    if num_bytes > MAX_RECORD_BYTES:
        raise RecordError(str(path), f"is {num_bytes} bytes, more than the {MAX_RECORD_BYTES} allowed")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableFileError(str(path), error.strerror) from error


def parse_record(text: bytes, path: Path) -> dict[str, Any]:
    """Check a record and return its content without the checksum; raise RecordError, which names `path`."""
    try:
        content = json.loads(text.decode(), parse_constant=_refuse_constant, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise RecordError(str(path), f"not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise RecordError(str(path), f"holds a {type(content).__name__}, not an object")
    if _is_deeper(content, _MAX_DEPTH):
        raise RecordError(str(path), f"nested more than {_MAX_DEPTH} deep")
    recorded = content.pop("record_sha256", None)
    try:
        actual = _checksum(content)
    except (ValueError, RecursionError) as error:
        raise RecordError(str(path), f"not canonical JSON ({error})") from error
    if recorded != actual:
        raise RecordError(str(path), "damaged: its content does not match its own record_sha256")
    if _without_layout(text) != _canonical(_sealed(content, actual)) and not _is_exactly_written(text.decode()):
        raise RecordError(str(path), "damaged: a number or a string is not written as its value is")
    return content


def parse_fields(record_class: type[Record], item: dict[str, Any], path: Path) -> Record:
    """Build a record from a JSON object; raise RecordError for missing, unknown and wrongly typed fields."""
    fields = _field_types(record_class)  # type: ignore[arg-type]
    if item.keys() != fields.keys():
        wrong = sorted(item.keys() ^ fields.keys())
        raise RecordError(str(path), f"missing or unknown keys {wrong}")
    for name, type_name in fields.items():
        value = item[name]
        if not isinstance(value, _JSON_TYPES[type_name]) or isinstance(value, bool):
            raise RecordError(str(path), f"{name!r} is {value!r:.60}, expected {type_name}")
        if isinstance(value, int) and abs(value) > LARGEST_INT:
            raise RecordError(str(path), f"{name!r} is larger than any reader can hold")
    return record_class(**item)


def is_sha256(text: str) -> bool:
    """Return whether a text is a sha256 in lower-case hex digits."""
    return _SHA256.fullmatch(text) is not None


def _is_exactly_written(text: str) -> bool:
    """Return whether every string and number is written as a JSON writer writes its value.

    Other digits or escapes can read as the same value, and then the checksum does not show the change.
    """
    for literal in _LITERAL.findall(text):
        value = json.loads(literal)
        if literal not in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
            return False
    return True


def _without_layout(text: bytes) -> bytes:
    """Return a record without the line breaks and spaces that write_record puts between its literals.

    A string that itself holds `": ` also loses its space. Such a record never equals its canonical text.
    """
    return _LINE_BREAK.sub(b"", text).replace(b'": ', b'":')


def _is_deeper(content: object, depth: int) -> bool:
    level = [content]
    for _ in range(depth):
        if not level:
            return False
        nested = [item for item in level if isinstance(item, dict | list)]
        level = [value for item in nested for value in (item.values() if isinstance(item, dict) else item)]
    return bool(level)


def _sealed(content: dict[str, Any], checksum: str) -> dict[str, Any]:
    return content | {"record_sha256": checksum}


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's keys and values. Raise ValueError for a repeated key, which readers treat differently."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("an object has a key twice")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


@functools.cache
def _field_types(record_class: type) -> dict[str, str]:
    """Return the names of a record's fields and of their types, without the part in brackets."""
    return {field.name: str(field.type).partition("[")[0] for field in dataclasses.fields(record_class)}
