"""Text from files of every kind, and what is said about files that cannot be read."""

from __future__ import annotations

import errno
import gzip
import json
import os
import random
import re
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline import BeamsConfig, SamplesConfig
from pipeline.errors import ColumnError, DataError, NoSuchDataError
from pipeline.sources import stdlib_corpus
from pipeline.sources.corpus import Corpus

TEXTS = ["The first text.\nIt has two lines.", "", "x", "Ünïcödé — 漢字 🙂", "the last"]


def jsonl(texts: list[str], column: str = "text") -> bytes:
    return "".join(json.dumps({column: text, "id": i}) + "\n" for i, text in enumerate(texts)).encode()


def write_parquet(path: Path, texts: list[str]) -> Path:
    pq.write_table(pa.table({"id": list(range(len(texts))), "text": texts}), path)
    return path


def test_a_text_file_is_one_document(read: Callable[..., list[str]], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n")
    assert read(path) == ["one\n\ntwo\n"]


@pytest.mark.parametrize("piece_chars", [3, 8, 1 << 20])
@pytest.mark.parametrize(
    ("separator", "text", "expected"),
    [
        ("\n", "one\ntwo\n\nthree", ["one", "two", "", "three"]),
        ("\\n", "one\ntwo", ["one", "two"]),
        ("\\n\\n", "one\ntwo\n\nthree four\n\n", ["one\ntwo", "three four", ""]),
        ("<|end|>", "one two<|end|>three<|end|><|end|>four <|en", ["one two", "three", "", "four <|en"]),
    ],
)
def test_a_separator_cuts_a_text_file(
    read: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    piece_chars: int,
    separator: str,
    text: str,
    expected: list[str],
) -> None:
    monkeypatch.setattr("pipeline.sources.plain_text._PIECE_CHARS", piece_chars)
    path = tmp_path / "a.txt"
    path.write_text(text)
    assert read(path, document_separator=separator) == expected


def test_every_kind_of_file_gives_the_same_documents(read: Callable[..., list[str]], tmp_path: Path) -> None:
    lines = jsonl(TEXTS)
    files = {
        "a.jsonl": lines,
        "a.jsonl.gz": gzip.compress(lines),
        "a.jsonl.zst": zstandard.compress(lines),
        "a.json": json.dumps([{"text": text} for text in TEXTS]).encode(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert read(tmp_path / name) == TEXTS, name
    assert read(write_parquet(tmp_path / "a.parquet", TEXTS)) == TEXTS
    plain = "\x00".join(TEXTS).encode()
    for name, content in {
        "t.txt": plain,
        "t.md.gz": gzip.compress(plain),
        "t.txt.zst": zstandard.compress(plain),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert read(tmp_path / name, document_separator="\x00") == TEXTS, name


def test_a_directory_is_read_in_the_order_of_its_paths(read: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "nested").mkdir()
    (tmp_path / "b.jsonl").write_bytes(jsonl(["b1", "b2"]))
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "no_suffix").write_text("ignored")
    (tmp_path / "nested" / "d.txt.zst").write_bytes(zstandard.compress(b"d"))
    write_parquet(tmp_path / "c.parquet", ["c1", "c2"])
    assert read(tmp_path) == ["a", "b1", "b2", "c1", "c2", "d"]


def test_a_missing_text_is_an_empty_document(read: Callable[..., list[str]], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "first"}\n{"text": null}\n')
    assert read(path) == ["first", ""]


def test_another_text_column(read: Callable[..., list[str]], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(["first"], column="body"))
    assert read(path, text_column="body") == ["first"]
    with pytest.raises(ColumnError) as caught:
        read(path)
    assert caught.value.column == "text"
    assert "body" in str(caught.value)


def test_rows_may_lack_the_text_but_not_all_of_them(
    read: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1}\n{"text": "b"}\n{"id": 3}\n')
    assert read(path) == ["", "b", ""]
    path.write_text('{"id": 1}\n' * 3)
    with pytest.raises(ColumnError, match=r"'text': not among \['id'\]"):
        read(path)
    monkeypatch.setattr("pipeline.sources.rows._MOST_ROWS_WITHOUT", 2)
    path.write_text('{"id": 1}\n' * 2 + '{"text": "b"}\n')
    with pytest.raises(ColumnError):
        read(path)
    path.write_text('{"id": 1}\n{"text": "b"}\n' + '{"id": 1}\n' * 3)
    assert read(path) == ["", "b", "", "", ""]
    path.write_text("{}\n" * 2 + '{"text": "b"}\n')
    with pytest.raises(ColumnError, match=r"'text': not among \[\]"):
        read(path)


@pytest.mark.parametrize("rows", ['{"text": 3}\n', '{"text": "fine"}\n{"text": 4}\n', '{"text": ["a", "b"]}\n'])
def test_a_text_column_that_is_not_text(read: Callable[..., list[str]], tmp_path: Path, rows: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(rows)
    with pytest.raises(ColumnError) as caught:
        read(path)
    assert caught.value.column == "text"


def test_prompts_come_from_their_columns(open_data: Callable[..., Corpus], tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Why?"}]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a text", "question": "Who?", "chat": chat, "other": "x"}) + "\n")
    corpus = open_data(path, samples=SamplesConfig(prompt_column="question"), beams=BeamsConfig(prompt_column="chat"))
    assert [document.prompts for document in corpus.documents()] == [{"question": "Who?", "chat": chat}]
    assert [document.prompts for document in open_data(path).documents()] == [{}]


@pytest.mark.parametrize("value", [3, None, [], [{"role": "user"}], ["a"], "absent"])
def test_a_prompt_column_without_prompts(open_data: Callable[..., Corpus], tmp_path: Path, value: object) -> None:
    path = tmp_path / "a.jsonl"
    row = {"text": "a text"} if value == "absent" else {"text": "a text", "question": value}
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ColumnError) as caught:
        list(open_data(path, samples=SamplesConfig(prompt_column="question")).documents())
    assert caught.value.column == "question"


@pytest.mark.parametrize(
    ("content", "text", "num_told"),
    [(b"ab\xffcd", "ab\ufffdcd", "1"), (1500 * b"\xe9 ", 1500 * "\ufffd ", "1,500"), ("ä数\n".encode(), "ä数\n", None)],
)
def test_undecodable_bytes_become_replacement_characters_and_are_told(
    read: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes,
    text: str,
    num_told: str | None,
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert read(path) == [text]
    told = capsys.readouterr().err
    assert told.startswith(f"{path}: read {num_told} U+FFFD") if num_told else not told


def test_undecodable_bytes_are_told_when_reading_ends_early(
    open_data: Callable[..., Corpus], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xe9 a " * (1 << 20))
    (document,) = open_data(path).documents()
    pieces = iter(document.pieces)
    next(pieces)
    pieces.close()
    assert "U+FFFD" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nothing.txt", "nothing.jsonl", "no/where"])
def test_nothing_there(read: Callable[..., list[str]], tmp_path: Path, name: str) -> None:
    with pytest.raises(NoSuchDataError) as caught:
        read(tmp_path / name)
    assert caught.value.source == str(tmp_path / name)


def test_nothing_of_a_known_kind(read: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.xyz").write_text("text")
    for path in (tmp_path / "empty", tmp_path / "a.xyz"):
        with pytest.raises(NoSuchDataError):
            read(path)


LONG = jsonl([f"a text of some length, number {i}" for i in range(2000)])
BROKEN_FILES = {
    "nothing.txt.gz": b"",
    "cut.txt.gz": gzip.compress(LONG)[:-9],
    "cut.txt.zst": zstandard.compress(LONG)[:-9],
    "not_gzip.txt.gz": b"plain text",
    "not_zstd.txt.zst": b"plain text",
    "not_zstd.jsonl.zst": b"plain text",
    "not_json.jsonl": b"not json at all\n",
    "cut.jsonl": LONG[: len(jsonl(["a"])) + 5],
    "cut.jsonl.gz": gzip.compress(LONG)[:-9],
    "cut.jsonl.zst": zstandard.compress(LONG)[:-9],
    "not_parquet.parquet": b"PAR1 nothing",
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_broken_file_is_an_error_and_never_a_shorter_text(
    read: Callable[..., list[str]], tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(BROKEN_FILES[name])
    with pytest.raises(DataError) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_fingerprint_follows_the_content_and_not_the_place(
    open_data: Callable[..., Corpus], tmp_path: Path
) -> None:
    paths = [tmp_path / place / "a.txt" for place in ("one", "two", "three")]
    for path, text in zip(paths, ["same", "same", "other"], strict=True):
        path.parent.mkdir()
        path.write_text(text)
    prints = [open_data(path).fingerprint for path in paths]
    assert prints[0] == prints[1] == open_data(tmp_path / "one").fingerprint
    assert prints[2] != prints[0]
    (tmp_path / "one" / "b.txt").write_text("same")
    assert open_data(tmp_path / "one").fingerprint != prints[0]


@pytest.mark.parametrize("separator", [None, "<|never|>", "<<<<"])
def test_a_long_text_comes_in_pieces_also_when_no_separator_ends_it(
    open_data: Callable[..., Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str | None
) -> None:
    monkeypatch.setattr("pipeline.sources.plain_text._PIECE_CHARS", 64)
    text = "<<<without_a_place_to_cut" * 400
    path = tmp_path / "a.txt"
    path.write_text(text)
    documents = [list(document.pieces) for document in open_data(path, document_separator=separator).documents()]
    assert len(documents) == 1
    assert "".join(documents[0]) == text
    assert max(map(len, documents[0])) < 64 + len("<|never|>")


@pytest.mark.parametrize("separator", ["ab", "aa", "aba", "\\n\\n", "\\n"])
@pytest.mark.parametrize("piece_chars", [1, 2, 5])
def test_separators_are_found_wherever_pieces_end(
    read: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str, piece_chars: int
) -> None:
    monkeypatch.setattr("pipeline.sources.plain_text._PIECE_CHARS", piece_chars)
    text = "".join(random.Random(0).choices("aab\n", k=300))
    path = tmp_path / "a.txt"
    path.write_text(text)
    assert read(path, document_separator=separator) == text.split(separator.replace("\\n", "\n"))


@pytest.fixture
def forget_stdlib() -> Iterator[Callable[[], None]]:
    """The documents are parsed once a process; no test may leave its own behind."""
    stdlib_corpus.stdlib_documents.cache_clear()
    yield stdlib_corpus.stdlib_documents.cache_clear
    stdlib_corpus.stdlib_documents.cache_clear()


@pytest.fixture
def small_stdlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget_stdlib: Callable[[], None]) -> Path:
    root = tmp_path / "lib"
    files = {
        "b.py": '"""Module b."""\n\ndef f(x, *, y=1):\n    """Function f.\n\n    More.\n    """\n',
        "a.py": 'class C:\n    """Class C."""\n    async def m(self): "Method m."\n',
        "none.py": "x = 1\n",
        "broken.py": '"""Doc."""\ndef (',
        "nulls.py": "\x00",
        "package/z.py": '"""Nested."""',
        "site-packages/no.py": '"""Not the standard library."""',
        "__pycache__/no.py": '"""Not the standard library."""',
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    monkeypatch.setattr(stdlib_corpus.sysconfig, "get_paths", lambda: {"stdlib": str(root)})
    return root


def test_the_stdlib_corpus_is_the_docstrings_in_order(
    small_stdlib: Path, open_data: Callable[..., Corpus], forget_stdlib: Callable[[], None]
) -> None:
    corpus = open_data("stdlib")
    assert ["".join(document.pieces) for document in corpus.documents()] == [
        "class C\nClass C.\n\ndef m(self)\nMethod m.\n",
        "b\nModule b.\n\ndef f(x, *, y=1)\nFunction f.\n\nMore.\n",
        "z\nNested.\n",
    ]
    assert corpus.licence == "psfl"
    forget_stdlib()
    assert open_data("stdlib").fingerprint == corpus.fingerprint
    forget_stdlib()
    (small_stdlib / "b.py").write_text('"""Module b, changed."""\n')
    assert open_data("stdlib").fingerprint != corpus.fingerprint


def test_the_real_standard_library_has_documents() -> None:
    root = Path(sysconfig.get_paths()["stdlib"]) / "json"
    documents = list(stdlib_corpus.docstring_documents(root))
    assert len(documents) >= 3
    assert any("JSON" in document for document in documents)


def test_names_that_look_like_patterns_are_names(read: Callable[..., list[str]], tmp_path: Path) -> None:
    names = ["a1.jsonl", "a[1].jsonl", "a*.jsonl", "a?.jsonl.gz"]
    directory = tmp_path / "data [1]"
    directory.mkdir()
    for name in names:
        content = json.dumps({"text": name}).encode() + b"\n"
        (directory / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert sorted(read(directory)) == sorted(names)
    for name in names:
        assert read(directory / name) == [name]


def test_of_a_directory_the_file_is_named(read: Callable[..., list[str]], tmp_path: Path) -> None:
    directory = tmp_path / "data"
    directory.mkdir()
    (directory / "a.jsonl").write_bytes(jsonl(["first"]))
    second = directory / "b.jsonl"
    for content, told in (
        ('{"text": "fine"}\n{"text": oops}\n', "line 2 is not JSON"),
        ('{"body": "a text"}\n', "'text': not among"),
        ('{"text": 3}\n', "'text': row 1 holds int"),
    ):
        second.write_text(content)
        with pytest.raises(DataError, match=f"^--data {re.escape(str(second))}: .*{told}"):
            read(directory)


def test_markdown_in_a_directory_tells_of_the_data_and_is_none(read: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("about the data")
    (tmp_path / "notes.MD.GZ").write_bytes(gzip.compress(b"about it, too"))
    (tmp_path / "a.md.txt").write_text("text")
    assert read(tmp_path) == ["text"]
    assert read(tmp_path / "README.md") == ["about the data"]


def test_empty_files_hold_no_document(read: Callable[..., list[str]], tmp_path: Path) -> None:
    for name, content in {"a.jsonl": b"", "b.jsonl": jsonl(["text"]), "c.jsonl.gz": gzip.compress(b"")}.items():
        (tmp_path / name).write_bytes(content)
    assert read(tmp_path) == ["text"]
    assert read(tmp_path / "a.jsonl") == read(tmp_path / "c.jsonl.gz") == []


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_file_of_no_bytes_that_cannot_be_one_is_refused(
    read: Callable[..., list[str]], tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(NoSuchDataError, match=name):
        read(tmp_path)


def test_a_directory_that_cannot_be_read_is_not_left_out(
    read: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "closed").mkdir()
    original = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(NoSuchDataError, match=r"closed: cannot be read \(Permission denied\)"):
        read(tmp_path)


def test_upper_case_names(read: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "A.TXT.GZ").write_bytes(gzip.compress(b"one"))
    (tmp_path / "B.JSONL.GZ").write_bytes(gzip.compress(jsonl(["two"])))
    (tmp_path / "C.TXT.ZST").write_bytes(zstandard.compress(b"three"))
    assert read(tmp_path) == ["one", "two", "three"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_utf_16_is_refused(
    read: Callable[..., list[str]], tmp_path: Path, encoding: str, compress: Callable[[bytes], bytes], name: str
) -> None:
    path = tmp_path / (name if compress is bytes else f"{name}.gz")
    path.write_bytes(compress("\ufeff".encode(encoding) + "a text".encode(encoding)))
    with pytest.raises(NoSuchDataError, match="is UTF-16 or UTF-32, expected UTF-8"):
        read(path)


def test_a_byte_order_mark_is_no_text(read: Callable[..., list[str]], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfa text \xef\xbb\xbf")
    assert read(path) == ["a text \ufeff"]
