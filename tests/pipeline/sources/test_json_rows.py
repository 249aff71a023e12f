"""JSON as people have it: rows that differ, marks and blank lines, and what is said about what is no row."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import JsonRowError
from pipeline.sources.json_rows import json_rows


def rows_of(tmp_path: Path, content: str | bytes, name: str = "a.jsonl") -> list[dict[str, Any]]:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(json_rows(path))


def test_each_row_stands_for_itself(tmp_path: Path) -> None:
    """Of what follows, readers that make columns of rows refuse all but the first, or read dates."""
    rows: list[dict[str, Any]] = [
        {"text": "2020-01-01", "id": 1, "meta": None},
        {"text": "2021-05-06T07:08:09Z", "id": "b", "meta": {"when": "2020-01-01"}},
        {"text": None, "id": 2.5, "meta": [1, {"a": []}], "new": True},
        {"other": 1e300},
        {},
    ]
    many = rows * 5000  # beyond any buffer
    assert rows_of(tmp_path, "".join(json.dumps(row) + "\n" for row in many)) == many


@pytest.mark.parametrize(
    "content",
    [
        '{"text": "é"}\n{"text": "b"}',
        '\ufeff{"text": "é"}\r\n{"text": "b"}\r\n',
        '\n  \n{"text": "\\u00e9"}\n\n\t\n{"text": "b"}\n\n',
        '[{"text": "é"}, {"text": "b"}]',
        '\ufeff\n [\n{"text": "é"},\n{"text": "b"}\n]\n',
        '{"text": "é"} {"text": "b"}',
        '{"text": "é"}\r{"text": "b"}\r',
        '{\n "text":\n "é"\n}\n{ "text": "b"\n}\n',
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
def test_lines_and_arrays(tmp_path: Path, content: str, name: str) -> None:
    stored = gzip.compress(content.encode()) if name.endswith(".gz") else content
    assert rows_of(tmp_path, stored, name) == [{"text": "é"}, {"text": "b"}]


@pytest.mark.parametrize("content", ["", "\n", " \n\t\r\n", "\ufeff", "[]"])
def test_no_rows(tmp_path: Path, content: str) -> None:
    assert rows_of(tmp_path, content) == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"text": "a"}\n\nnull\n', "line 3 holds null"),
        ('{"text": "a"}\n[1, 2]\n', r"line 2 holds \[1, 2\]"),
        ('"text"\n', 'line 1 holds "text"'),
        ('{"text": "a"}\n{"text": \n', r"line 2 is not JSON \(.*, column \d+\)"),
        ('{"text": "a"} x\n', r"line 1 is not JSON \(Expecting value, column 15\)"),
        ('{\n "text": "a"\n}\n{\n "text"\n}', "line 6 is not JSON"),
        ('{\n "text": "a"\n}\n\n3\n', "line 5 holds 3"),
        ('{"text": "a"}\n{\n "text": "b"\n}\n', "line 2 is not JSON"),
        (b'{"text": "a"}\n\xbf\xbb\n', "line 2 is not UTF-8"),
        ('{"text": "a", "other": ' + "[" * 700 + "]" * 700 + "}", "line 1 cannot be read"),
        ('[{"text": "a"}, 3]', "item 2 of the array holds 3"),
        ('\n[\n{"text": "a"},\n{"text" "b"}]', "line 4 is not JSON"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', r"line 2 is not UTF-8 \(invalid start byte\)"),
        ("[" * 100_000, "line 1 cannot be read"),
        ('{"text": ' + "9" * 10_000 + "}", "line 1 cannot be read"),
        ('{"text": "' + "a" * 100 + '"}\n"' + "b" * 100 + '"', r'line 2 holds "b{39};'),
    ],
)
def test_what_is_no_row_is_told_with_its_place(tmp_path: Path, content: str | bytes, told: str) -> None:
    with pytest.raises(JsonRowError, match=rf"^--data {tmp_path}/a\.jsonl: {told}") as caught:
        rows_of(tmp_path, content)
    assert "\n" not in str(caught.value)


def test_tabs_may_stand_in_strings(tmp_path: Path) -> None:
    assert rows_of(tmp_path, '{"text": "a\tb"}\n') == [{"text": "a\tb"}]


def test_half_characters_are_replaced_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"text": "a\ud83d b", "chat": [{"content": "\udc00\ud800"}], "whole": "\U0001f642 \ufffd"}
    assert rows_of(tmp_path, json.dumps(row) + "\n") == [
        {"text": "a\ufffd b", "chat": [{"content": "\ufffd\ufffd"}], "whole": "\U0001f642 \ufffd"}
    ]
    assert capsys.readouterr().err == f"{tmp_path}/a.jsonl: 3 lone surrogates were read as U+FFFD\n"
    assert rows_of(tmp_path, '{"text": "\\\\ud83d"}') == [{"text": "\\ud83d"}]
    assert not capsys.readouterr().err


def test_half_characters_are_told_when_reading_ends_early(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "\\udc00"}\n' * 3)
    rows = json_rows(path)
    next(rows)
    rows.close()  # type: ignore[attr-defined]
    assert "1 lone surrogates" in capsys.readouterr().err
