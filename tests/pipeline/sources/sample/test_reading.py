"""Windows of a file are pieces of it: all together hold every word and the end of every document once."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.config import PrecomputeConfig
from pipeline.errors import ColumnError, DataError, JsonRowError, NoSampleError
from pipeline.sources.corpus import Document, open_corpus
from pipeline.sources.sample.files import Files
from pipeline.sources.sample.fragments import Reading, Sample
from pipeline.sources.sample.ratio import ratio_total
from pipeline.sources.sample.sample import take_sample
from pipeline.sources.sample.windows import WINDOW_BYTES, Line, Window

WORDS = ["the", "teacher", "ran", "once", "and", "wrote", "down", "what", "it", "knew:", "é", "ü", "漢字", "🙂", "‽"]


def made_up(num_documents: int, seed: int = 0, longest: int = 20_000) -> list[str]:
    """Documents of 1 to `longest` words; most are short, and one is the longest."""
    rng = random.Random(seed)
    lengths = [min(int(rng.lognormvariate(3, 1.3)) + 1, longest) for _ in range(num_documents - 1)]
    return [" ".join(rng.choices(WORDS, k=length)) for length in [*lengths, longest]]


def lines_of(documents: list[str]) -> str:
    return "".join(
        json.dumps({"id": i, "text": text}, ensure_ascii=i % 2 == 0) + "\n" for i, text in enumerate(documents)
    )


def written(path: Path, documents: list[str]) -> Path:
    """Write documents in the format that the name says."""
    text = "\n\n".join(documents)
    match path.name:
        case "plain.txt":
            path.write_text(text, encoding="utf-8")
        case "marked.txt":
            path.write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
        case "whole.txt.gz":
            path.write_bytes(
                gzip.compress(text[: len(text) // 2].encode()) + gzip.compress(text[len(text) // 2 :].encode())
            )
        case "rows.jsonl":
            path.write_text(lines_of(documents)[:-1], encoding="utf-8")
        case "rows.jsonl.zst":
            path.write_bytes(zstandard.compress(lines_of(documents).encode()))
        case "array.json":
            path.write_text(json.dumps([{"text": text} for text in documents], indent=1))
        case "rows.parquet":
            pq.write_table(pa.table({"id": range(len(documents)), "text": documents}), path, row_group_size=300)
        case "rows.arrow":
            with (
                pa.OSFile(str(path), "wb") as sink,
                pa.ipc.new_stream(sink, pa.schema({"text": pa.string()})) as writer,
            ):
                writer.write_table(pa.table({"text": documents}), max_chunksize=250)
    return path


def configured(path: Path, **changes: object) -> PrecomputeConfig:
    settings: dict[str, object] = {"document_separator": "\n\n", "kinds": ("soft_targets",)}
    return PrecomputeConfig(teacher="", data=str(path), out="", **(settings | changes))  # type: ignore[arg-type]


def read_all(config: PrecomputeConfig, path: Path) -> list[Reading]:
    """Read every window of a file."""
    line = Line([path])
    starts = range(0, line.num_bytes, WINDOW_BYTES)
    windows = [Window(stratum=0, weight=1, start=a, stop=min(a + WINDOW_BYTES, line.num_bytes)) for a in starts]
    with Files(config, 1 << 26, set()).opened(path) as reader:
        return [reader.read(part.start, part.stop) for window in windows for part in line.ranges(window)]


def words_of(document: Document) -> list[str]:
    return "".join(document.pieces).split()


@pytest.mark.parametrize("name", ["plain.txt", "marked.txt", "rows.jsonl"])
def test_windows_hold_every_word_and_end_once(tmp_path: Path, name: str) -> None:
    documents = made_up(1500)
    path = written(tmp_path / name, documents)
    readings = read_all(configured(path), path)
    fragments = [fragment for reading in readings for fragment in reading.fragments]
    assert [word for fragment in fragments for word in words_of(fragment.document)] == [
        w for text in documents for w in text.split()
    ]
    assert (
        sum(fragment.ends for fragment in fragments) == sum(fragment.begins for fragment in fragments) == len(documents)
    )
    assert sum(reading.num_bytes for reading in readings) == pytest.approx(path.stat().st_size, rel=1e-9)


@pytest.mark.parametrize("name", ["whole.txt.gz", "rows.jsonl.zst", "array.json", "rows.parquet", "rows.arrow"])
def test_windows_of_other_formats_hold_as_many_words_as_the_file(tmp_path: Path, name: str) -> None:
    """Their places are not those of the text, so windows overlap a little or leave a little out."""
    documents = made_up(3000, longest=3000)
    path = written(tmp_path / name, documents)
    readings = read_all(configured(path), path)
    num_words = sum(
        len(words_of(fragment.document)) * reading.density for reading in readings for fragment in reading.fragments
    )
    num_ends = sum(fragment.ends * reading.density for reading in readings for fragment in reading.fragments)
    per_byte = path.stat().st_size / sum(reading.num_bytes for reading in readings)
    assert num_words * per_byte == pytest.approx(sum(len(text.split()) for text in documents), rel=0.05)
    assert num_ends * per_byte == pytest.approx(len(documents), rel=0.12)


@pytest.mark.parametrize("text", ["", "\n", "é" * 9000, "word " * 5000, "\r\n" * 5000, " ", "a", "漢字" * 4000])
def test_odd_texts(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.txt"
    path.write_bytes(text.encode())
    readings = read_all(configured(path, document_separator=None), path)
    found = "".join("".join(fragment.document.pieces) for reading in readings for fragment in reading.fragments)
    assert found == text.replace("\r\n", "\n")
    assert sum(reading.num_bytes for reading in readings) == len(text.encode())
    if text:
        assert sum(fragment.ends for reading in readings for fragment in reading.fragments) == 1


@pytest.mark.parametrize("name", ["marked.jsonl", "marked.jsonl.gz"])
def test_a_mark_before_the_first_row_is_no_part_of_it(tmp_path: Path, name: str) -> None:
    path, content = tmp_path / name, b"\xef\xbb\xbf" + lines_of(["one", "two"]).encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    readings = read_all(configured(path), path)
    assert [words_of(p.document) for reading in readings for p in reading.fragments] == [["one"], ["two"]]


def test_conversations_stay_whole(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": text}]} for text in made_up(400, longest=9000)]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    readings = read_all(configured(path, document_separator=None, messages_column="messages"), path)
    found = [fragment.document.turns for reading in readings for fragment in reading.fragments]
    assert [turns.messages for turns in found if turns] == [row["messages"] for row in rows]


@pytest.fixture
def sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sample | None]:
    """Takes a sample of a directory with these documents, which is large from 128 KiB on."""
    monkeypatch.setattr("pipeline.sources.sample.sample._SMALL_BYTES", 1 << 17)
    monkeypatch.setattr("pipeline.sources.sample.sample._SMALL_DENSE_BYTES", 1 << 17)

    def sample(documents_of: dict[str, list[str]], **changes: object) -> Sample | None:
        for name, documents in documents_of.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            written(tmp_path / name, documents)
        config = configured(tmp_path, **changes)
        return take_sample(config, open_corpus(config))

    return sample


def test_a_small_source_is_not_sampled(sampled: Callable[..., Sample | None]) -> None:
    assert sampled({"plain.txt": made_up(50, longest=500), "rows.jsonl": made_up(50, longest=500)}) is None


def test_a_sample_is_the_same_twice_and_says_what_it_read(sampled: Callable[..., Sample | None]) -> None:
    files = {name: made_up(1500, seed) for seed, name in enumerate(["plain.txt", "rows.jsonl", "rows.parquet"])}
    sample, again = sampled(files), sampled({})
    assert sample is not None
    assert again is not None
    texts = [
        [
            "".join(fragment.document.pieces)
            for readings in taken.readings
            for reading in readings
            for fragment in reading.fragments
        ]
        for taken in (sample, again)
    ]
    assert texts[0] == texts[1]
    assert sample.num_read_files == sample.num_files == 3
    assert sample.beginnings == []
    assert sample.read_size == pytest.approx(sum(w.stop - w.start for w in sample.windows), rel=0.2)


def test_a_file_that_cannot_be_entered_is_named(
    sampled: Callable[..., Sample | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sources.sample.sample._MOST_BEGINNING_BYTES", 1 << 16)
    monkeypatch.setattr("pipeline.sources.sample.sample._LEAST_BEGINNING_BYTES", 1 << 16)
    sample = sampled({"rows.jsonl.zst": made_up(1500), "plain.txt": made_up(1500)})
    assert sample is not None
    assert sample.beginnings == ["rows.jsonl.zst"]


def test_a_column_that_no_row_has(sampled: Callable[..., Sample | None]) -> None:
    for name in ("rows.jsonl", "rows.parquet"):
        with pytest.raises(ColumnError, match=r"column 'body': not among \['id', 'text'\]; name the right one"):
            sampled({name: made_up(1500)}, text_column="body")


def test_a_line_that_is_no_row_is_named_by_its_place(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "one"}\n[3]\n')
    with pytest.raises(JsonRowError, match=r"bad\.jsonl: the line at byte 16 holds \[3\]; expected"):
        read_all(configured(path), path)


@pytest.mark.parametrize("name", ["bad.txt.gz", "bad.jsonl.zst", "bad.parquet", "bad.arrow", "bad.json"])
def test_bytes_of_another_format(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"[no such bytes" * 100)
    with pytest.raises(DataError, match=name):
        read_all(configured(tmp_path / name), tmp_path / name)


def test_rows_too_long_for_a_sample(tmp_path: Path, sampled: Callable[..., Sample | None]) -> None:
    row = {"messages": [{"role": "user", "content": "word " * 100_000}]}
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(5)))
    with pytest.raises(NoSampleError, match=r"a row begins at [0-5] of 304 places, because rows are very long"):
        sampled({}, document_separator=None, messages_column="messages")


def test_intervals_hold_for_files_of_two_kinds(sampled: Callable[..., Sample | None]) -> None:
    """A text of words, and rows with much beside their words: no stratum may hold the end of one and the other's
    beginning."""
    documents = made_up(900, longest=300)
    rows = [{"text": text, "note": text} for text in documents]
    files = {"plain.txt": documents, "rows.jsonl": [json.dumps(row) for row in rows]}
    num_words = sum(len(text.split()) for text in documents) + sum(len(json.dumps(row).split()) for row in rows)
    num_held = 0
    for seed in range(60):
        sample = sampled(files if seed == 0 else {}, seed=seed)
        assert sample is not None
        counts = [sum(len(words_of(p.document)) for r in readings for p in r.fragments) for readings in sample.readings]
        num_bytes = [sum(r.num_bytes for r in readings) for readings in sample.readings]
        found = ratio_total(sample.windows, counts, num_bytes, sample.size)
        num_held += found.value - found.below <= num_words <= found.value + found.above
    assert num_held >= 52
