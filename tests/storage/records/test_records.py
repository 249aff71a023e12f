from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage.errors import MissingFileError, RecordError, WriteRefusedError
from storage.records import records
from storage.records.records import MAX_RECORD_BYTES, read_record, write_record

CONTENT = {"b": [1, 2.5, None, True], "a": {"é": "🦉\n", "sum": 0.1 + 0.2}, "large": 2**63}


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "record.json"
    write_record(path, CONTENT)
    return path


def test_read_returns_what_was_written(record: Path) -> None:
    assert read_record(record) == CONTENT


def test_bytes_depend_on_content_alone(record: Path, tmp_path: Path) -> None:
    write_record(tmp_path / "other.json", dict(reversed(CONTENT.items())))
    assert (tmp_path / "other.json").read_bytes() == record.read_bytes()


def test_checksum_is_the_documented_one(record: Path, forge: SimpleNamespace) -> None:
    assert json.loads(record.read_bytes()) == json.loads(forge.seal(CONTENT))


def test_a_record_written_by_anyone_else_is_read(tmp_path: Path, forge: SimpleNamespace) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(forge.seal(CONTENT))
    assert read_record(path) == CONTENT


@pytest.mark.parametrize("text", ['a": b', '": "', '\\": ', "a\n  b", "\\n ", "  ", ', "record_sha256": "'])
def test_a_string_that_looks_like_layout_is_read(tmp_path: Path, forge: SimpleNamespace, text: str) -> None:
    content = {"a": text, text: {text: [text, 1]}}
    write_record(tmp_path / "ours.json", content)
    (tmp_path / "other.json").write_bytes(forge.seal(content))
    assert read_record(tmp_path / "ours.json") == read_record(tmp_path / "other.json") == content
    escaped = (tmp_path / "ours.json").read_bytes().replace(b'"a":', b'"\\u0061":')
    (tmp_path / "ours.json").write_bytes(escaped)
    with pytest.raises(RecordError, match="not written as its value is"):
        read_record(tmp_path / "ours.json")


def test_every_single_flipped_bit_is_noticed(record: Path) -> None:
    pristine = record.read_bytes()
    for position in range(len(pristine)):
        damaged = bytearray(pristine)
        damaged[position] ^= 1 << position % 8
        record.write_bytes(damaged)
        try:
            content = read_record(record)
        except RecordError:
            continue
        assert content == CONTENT, f"byte {position} changed the meaning"


def test_every_truncation_is_noticed(record: Path) -> None:
    pristine = record.read_bytes()
    for length in range(len(pristine) - 1):
        record.write_bytes(pristine[:length])
        with pytest.raises(RecordError):
            read_record(record)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not valid JSON"),
        (b"\x00" * 100, "not valid JSON"),
        (b"\xff\xfe\xfd", "not valid JSON"),
        (b"{} {}", "not valid JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e999}', "JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "JSON"),
        (b"[]", "holds a list"),
        (b"null", "holds a NoneType"),
        (b'"text"', "holds a str"),
        (b"{}", "record_sha256"),
        (b'{"a": 1}', "record_sha256"),
        (b'{"a": 1, "record_sha256": null}', "record_sha256"),
        (b'{"a": 1, "record_sha256": ["0"]}', "record_sha256"),
        (b'{"a": 1, "record_sha256": "' + b"0" * 64 + b'"}', "record_sha256"),
    ],
)
def test_a_malformed_record_is_refused_with_its_path(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=problem) as caught:
        read_record(path)
    assert caught.value.path == str(path)


def test_a_missing_record_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        read_record(tmp_path / "record.json")


def test_a_directory_is_not_a_record(tmp_path: Path) -> None:
    (tmp_path / "record.json").mkdir()
    with pytest.raises((RecordError, MissingFileError)):
        read_record(tmp_path / "record.json")


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path, run_python: SimpleNamespace) -> None:
    os.mkfifo(tmp_path / "record.json")
    code = (
        "import sys, pathlib; from storage.records.records import read_record; read_record(pathlib.Path(sys.argv[1]))"
    )
    assert "RecordError" in run_python(code, tmp_path / "record.json").stderr


def test_an_oversized_record_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    path.touch()
    os.truncate(path, MAX_RECORD_BYTES + 1)
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("the record was read"))
    with pytest.raises(RecordError, match=str(MAX_RECORD_BYTES)):
        read_record(path)


def test_a_record_of_exactly_the_largest_size_is_read(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", record.stat().st_size)
    assert read_record(record) == CONTENT


def test_a_number_that_json_lacks_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_record(tmp_path / "record.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_record_is_published_whole_or_not_at_all(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(WriteRefusedError):
        write_record(record, {"other": 1})
    assert read_record(record) == CONTENT


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ("1074.1005964279175", "1074.1005964279174"),  # the same double
        ("1e-05", "1E-05"),
        ("\\u00e9", "\\u00E9"),
        ("\\n", "\\u000a"),
    ],
)
def test_other_bytes_of_the_same_content_are_damage(tmp_path: Path, written: str, instead: str) -> None:
    path = tmp_path / "record.json"
    write_record(path, {"a": 1074.1005964279175, "b": 1e-05, "c": "caf\u00e9\n"})
    text = path.read_text()
    assert written in text
    assert json.loads(text.replace(written, instead)) == json.loads(text)
    path.write_text(text.replace(written, instead))
    with pytest.raises(RecordError, match="not written as its value is"):
        read_record(path)
