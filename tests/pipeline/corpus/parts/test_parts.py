"""A text that is tokenized in parts gives the bytes of one part, wherever the parts end."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import PrecomputeConfig, SamplesConfig
from pipeline.corpus import long_texts, text_ahead, tokenizer_calls, windows_ahead
from pipeline.corpus.parts import sharing
from pipeline.corpus.parts.sharing import SharedParts
from pipeline.corpus.parts.writing import TokenizationPlan, write_part
from pipeline.corpus.tokenization import tokenize_as_planned
from pipeline.errors import JsonRowError, TokenBeyondVocabularyError
from pipeline.sources import parts as source_parts
from pipeline.sources import plain_text
from pipeline.sources.corpus import open_corpus
from tests.storage.text import families
from tests.storage.text.families import awkward_text

PART_BYTES, WHOLE = 3000, 1 << 30
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEXT = awkward_text(random.Random(3), 14_000)
WORDS = " ".join(random.Random(4).choices(["the", "teacher", "once", "knew", "all"], k=2500))
DOCUMENTS = [TEXT[start : start + 150] for start in range(0, len(TEXT), 150)]


tokenizer_of = functools.cache(families.tokenizer_of)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_texts, "WINDOW_CHARS", 900)
    monkeypatch.setattr(long_texts, "OVERLAP_CHARS", 400)
    monkeypatch.setattr(windows_ahead, "_CONTEXT_CHARS", 32)
    monkeypatch.setattr(text_ahead, "_SLICE_CHARS", 500)
    monkeypatch.setattr(plain_text, "_LINE_WITHIN_BYTES", 300)


def plan_of(source: Path, tokenizer: Any, **settings: Any) -> TokenizationPlan:
    config = PrecomputeConfig(teacher="t", data=str(source), out="o", block_size=8, quiet=True, **settings)
    return TokenizationPlan(
        corpus=open_corpus(config),
        tokenizer=tokenizer,
        config=config,
        vocab_size=len(tokenizer) + 2,
        beginning_ids=(),
        context_length=512,
    )


@pytest.fixture
def same_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Tokenizes a source as one part on one thread, and as many parts on four; the stores must be equal.

    Returns the number of parts.
    """
    numbers = itertools.count()

    def stores(part_bytes: int, *arguments: Any, **settings: Any) -> tuple[int, dict[str, str]]:
        monkeypatch.setattr(source_parts, "PART_BYTES", part_bytes)
        monkeypatch.setattr(tokenizer_calls, "num_threads", lambda: 1 if part_bytes == WHOLE else 4)
        plan, tokens = plan_of(*arguments, **settings), tmp_path / f"work-{next(numbers)}" / "tokens"
        tokenize_as_planned(plan, tokens)
        assert {path.name for path in tokens.parent.iterdir()} == {"claims", "tokens"}
        files = [path for path in tokens.rglob("*") if path.is_file()]
        return len(plan.parts), {str(path.relative_to(tokens)): digest_of(path) for path in files}

    def same_in_parts(source: Path, tokenizer: Any, **settings: Any) -> int:
        num_parts, found = stores(PART_BYTES, source, tokenizer, **settings)
        assert found == stores(WHOLE, source, tokenizer, **settings)[1]
        return num_parts

    return same_in_parts


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("family", "separator"),
    [("gpt2", None), ("llama3", None), ("unigram always", None), ("wordpiece", None), ("gpt2", "\\n"), ("gpt2", "e")],
)
def test_text(same_in_parts: Callable[..., int], tmp_path: Path, family: str, separator: str | None) -> None:
    path = tmp_path / "a.txt"
    path.write_text(TEXT, newline="")
    assert same_in_parts(path, tokenizer_of(family), document_separator=separator) > 3


def test_short_documents_before_and_after_one_that_is_cut(
    same_in_parts: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_text, "_SEPARATOR_WITHIN_BYTES", 2500)
    short = [TEXT[start : start + 40] for start in range(0, 400, 40)]
    (tmp_path / "a.txt").write_text("§".join([*short, TEXT[:9000], *short, TEXT[5000:], *short]), newline="")
    assert same_in_parts(tmp_path / "a.txt", tokenizer_of("gpt2"), document_separator="§") > 3


@pytest.mark.parametrize("family", ["gpt2", "llama3", "unigram always", "wordpiece"])
def test_every_file_of_a_part_is_the_same_for_any_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    monkeypatch.setattr(source_parts, "PART_BYTES", PART_BYTES)
    (tmp_path / "a.txt").write_text(TEXT, newline="")
    found = []
    for num_threads in (1, 4):
        monkeypatch.setattr(tokenizer_calls, "num_threads", lambda num_threads=num_threads: num_threads)
        plan, directory = plan_of(tmp_path / "a.txt", tokenizer_of(family)), tmp_path / str(num_threads)
        for number, part in enumerate(plan.parts):
            write_part(plan, part, directory / str(number), None, lambda num_tokens: None)
        files = [path for path in directory.rglob("*") if path.is_file()]
        found.append({str(path.relative_to(directory)): digest_of(path) for path in files})
    assert found[0] == found[1]
    assert {Path(name).name for name in found[0]} >= {"head.npy", "tail.npy"}


def test_what_counts_behind_max_tokens_is_the_same_for_any_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text(("the teacher ran once " * 50 + families.END) * 20)
    facts = []
    for num_threads in (1, 4):
        monkeypatch.setattr(tokenizer_calls, "num_threads", lambda num_threads=num_threads: num_threads)
        plan = plan_of(tmp_path / "a.txt", tokenizer_of("gpt2"), max_tokens=80)
        facts.append(tokenize_as_planned(plan, tmp_path / str(num_threads) / "tokens").counts.facts())
    assert facts[0] == facts[1]


ODD_TEXTS = {
    "windows": TEXT.replace("\r", "").replace("\n", "\r\n").encode(),
    "old macs": TEXT.replace("\r", "").replace("\n", "\r").encode(),
    "mark": b"\xef\xbb\xbf" + WORDS.encode(),
    "any bytes": random.Random(5).randbytes(4000) + WORDS.encode() + random.Random(6).randbytes(4000),
    "of four bytes": "🙂 漢字 é\n".encode() * 900,
    "no newline at the end": b"one two\n\n" * 1200 + b"end",
    "separators alone": b"\n" * 10_000,
    "a huge line": b"first\n\n" + WORDS.encode() + b"\n\nlast\n",
}


@pytest.mark.parametrize("name", ODD_TEXTS)
@pytest.mark.parametrize("separator", [None, "\\n\\n"])
def test_odd_text(same_in_parts: Callable[..., int], tmp_path: Path, name: str, separator: str | None) -> None:
    (tmp_path / "a.txt").write_bytes(ODD_TEXTS[name] + (WORDS.encode() if name == "separators alone" else b""))
    assert same_in_parts(tmp_path / "a.txt", tokenizer_of("gpt2"), document_separator=separator) >= 2


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    """Rows of which some are followed by an empty line; the last one ends without a newline."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" * (1 + (i % 7 == 0)) for i, row in enumerate(rows))
    return "".join(lines).rstrip("\n").encode()


ROWS = [{"text": text, "ask": f"who is {i}?" * (1 + i % 60)} for i, text in enumerate(DOCUMENTS)]
SETTINGS: dict[str, dict[str, Any]] = {
    "texts": {},
    "prompts": {"samples": SamplesConfig(prompt_column="ask", max_new_tokens=8), "validation_fraction": 0.3},
    "pairs": {"prompt_column": "ask", "completion_column": "text"},
    **{f"max {number}": {"max_tokens": number} for number in (9, 700, 2000, 2001, 1_000_000)},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_json_lines(same_in_parts: Callable[..., int], tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    assert same_in_parts(tmp_path / "a.jsonl", tokenizer_of("gpt2"), **SETTINGS[name]) > 3


@pytest.mark.parametrize("max_tokens", [None, 1500])
def test_conversations(same_in_parts: Callable[..., int], tmp_path: Path, max_tokens: int | None) -> None:
    tokenizer = families.tokenizer_of("gpt2")
    tokenizer.chat_template = CHAT_TEMPLATE
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {i}?"},
                {"role": "assistant", "content": "A number. " * (i % 5)},
            ]
        }
        for i in range(150)
    ]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    assert same_in_parts(tmp_path / "a.jsonl", tokenizer, messages_column="messages", max_tokens=max_tokens) > 3


def test_files_of_every_kind(
    same_in_parts: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    table = pa.table({"id": range(len(DOCUMENTS)), "text": DOCUMENTS})
    pq.write_table(table, data / "a.parquet", row_group_size=10)
    for name, writer in (("b.arrow", pa.ipc.new_file), ("c.arrow", pa.ipc.new_stream)):
        with writer(data / name, table.schema) as sink:
            sink.write_table(table, max_chunksize=10)
    (data / "d.jsonl.gz").write_bytes(gzip.compress(jsonl(ROWS)))
    (data / "e.json").write_text(json.dumps(ROWS, indent=1))
    (data / "f.jsonl").write_bytes(jsonl(ROWS))
    for index in range(20):
        (data / f"g{index:02}.txt").write_text(TEXT[index * 300 : (index + 1) * 300] if index % 3 else "")
    assert same_in_parts(data, tokenizer_of("gpt2")) > 15


def test_where_nothing_divides_a_document_cuts_are_counted_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_parts, "PART_BYTES", PART_BYTES)
    digits = "0123456789" * 1000 + "0"
    (tmp_path / "a.txt").write_text(digits)
    tokenizer = tokenizer_of("llama3")  # which groups three digits from where it begins
    found = tokenize_as_planned(plan_of(tmp_path / "a.txt", tokenizer, validation_fraction=0.0), tmp_path / "w" / "t")
    text = tokenizer.decode(found.documents["train"].tokens[:-1].tolist()).replace(" ", "")
    assert found.counts.num_inexact_cuts == 1
    assert 0 <= len(text) - len(digits) < 3


def test_the_first_error_of_the_text_is_told_and_what_was_made_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second process has failed at a later part already, and waits for the earlier ones."""
    monkeypatch.setattr(source_parts, "PART_BYTES", PART_BYTES)
    lines = jsonl(ROWS).splitlines(keepends=True)
    lines[40] = b"no json\n"
    lines[-2] = b"nor this\n"
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
    plan = plan_of(tmp_path / "a.jsonl", tokenizer_of("gpt2"))
    parts = SharedParts(plan, tmp_path / "w" / "t")
    with sharing.Claims(tmp_path / "w") as others:
        assert others.take("t-part-000000")
        monkeypatch.setattr(
            sharing.Claims, "wait", lambda _: others.give_back("t-part-000000") if others._held else None
        )
        with pytest.raises(JsonRowError, match=r"behind byte \d+: line \d+ is not JSON"):
            parts.make_all()
    made = {path.name for path in (tmp_path / "w" / "t-parts").iterdir()}
    assert "000000" in made
    assert all(path.name in made for path in (tmp_path / "w" / "t-parts").iterdir())
    assert parts.num_parts - 1 not in {int(name) for name in made}


def test_with_max_tokens_the_parts_behind_them_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_parts, "PART_BYTES", PART_BYTES)
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS) + b"\nno json")
    plan = plan_of(tmp_path / "a.jsonl", tokenizer_of("gpt2"), max_tokens=2000)
    parts = SharedParts(plan, tmp_path / "w" / "t")
    parts.make_all()
    assert len(list((tmp_path / "w" / "t-parts").iterdir())) < len(plan.parts)


def test_parts_are_joined_and_removed_while_another_process_makes_one_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_parts, "PART_BYTES", PART_BYTES)
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    plan, tokens = plan_of(tmp_path / "a.jsonl", tokenizer_of("gpt2"), max_tokens=700), tmp_path / "w" / "t"
    other = SharedParts(plan, tokens)
    last = other.num_parts - 1
    other.make(last, lambda _: None if tokens.exists() else tokenize_as_planned(plan, tokens))
    assert other.are_enough()
    assert {path.name for path in tokens.parent.iterdir()} == {"claims", "t"}


@pytest.mark.parametrize(("separator", "place"), [("\\n\\n", r"document 2 of .*/b\.txt"), (None, r".*/b\.txt")])
def test_of_small_files_in_one_part_the_one_with_a_bad_token_is_named(
    tmp_path: Path, separator: str | None, place: str
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("")
    (tmp_path / "data" / "b.txt").write_text("\n\nthe teacher")
    plan = plan_of(tmp_path / "data", tokenizer_of("gpt2"), document_separator=separator)
    with pytest.raises(TokenBeyondVocabularyError, match=rf": {place} holds"):
        tokenize_as_planned(dataclasses.replace(plan, vocab_size=1), tmp_path / "w" / "t")
