"""Conversations and pairs reach the tokenizer as they stand, from every kind of file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import PrecomputeConfig, SamplesConfig
from pipeline.errors import ColumnError
from pipeline.sources.corpus import open_corpus
from pipeline.sources.documents import Document
from pipeline.sources.turns import Conversation, Pair
from storage.errors import ConfigError

MESSAGES = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
ROWS: list[dict[str, Any]] = [
    {"messages": MESSAGES, "ask": "Why? ", "say": "So."},
    {"messages": None, "ask": "Who? ", "say": None},
    {"messages": MESSAGES[:1], "ask": None, "say": "She."},
]
PAIRS = {"prompt_column": "ask", "completion_column": "say"}
Read = Callable[..., list[Document]]


@pytest.fixture(params=["rows.jsonl", "rows.parquet"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(data: Path, **changes: Any) -> list[Document]:
        config = PrecomputeConfig(teacher="unused", data=str(data), out=tmp_path / "unused", **changes)
        return list(open_corpus(config).documents())

    return read


def test_conversations(read: Read, file: Path) -> None:
    documents = read(file, messages_column="messages", kinds=("soft_targets",))
    assert [document.turns for document in documents] == [Conversation(row["messages"]) for row in ROWS]
    assert [document.place for document in documents] == [f"{file}: row {number}" for number in (1, 2, 3)]
    assert not any(list(document.pieces) or document.prompts for document in documents)


def test_pairs(read: Read, file: Path) -> None:
    found = [document.turns for document in read(file, kinds=("soft_targets",), **PAIRS)]
    assert found == [Pair(row["ask"], row["say"]) for row in ROWS]


def test_samples_and_beams_continue_questions(read: Read, file: Path) -> None:
    assert [d.prompts for d in read(file, messages_column="messages")] == [{"messages": r["messages"]} for r in ROWS]
    assert [d.prompts for d in read(file, **PAIRS)] == [{"ask": row["ask"]} for row in ROWS]
    other = read(file, messages_column="messages", kinds=("samples",), samples=SamplesConfig(prompt_column="ask"))
    assert [document.prompts for document in other] == [{"ask": row["ask"]} for row in ROWS]


@pytest.mark.parametrize(
    ("columns", "flag"),
    [({"messages_column": "chat"}, "--messages-column"), (PAIRS | {"completion_column": "no"}, "--completion-column")],
)
def test_a_column_that_no_row_has(read: Read, file: Path, columns: dict[str, Any], flag: str) -> None:
    with pytest.raises(ColumnError, match=rf"not among \['ask', 'messages', 'say'\]; name the right one with {flag}"):
        read(file, **columns)


def test_plain_text_has_no_conversations(read: Read, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text")
    for columns, flag in (({"messages_column": "chat"}, "--messages-column chat"), (PAIRS, "--prompt-column ask")):
        with pytest.raises(ConfigError, match=rf"^{flag}: --data .*a\.txt is plain text, which has no columns"):
            read(tmp_path / "a.txt", **columns)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"messages_column": "m", "text_column": "t"}, "--text-column and --messages-column exclude each other"),
        ({"messages_column": "m", **PAIRS}, "--messages-column and --prompt-column exclude each other"),
        ({"text_column": "t", **PAIRS}, "--text-column and --prompt-column exclude each other"),
        ({"prompt_column": "p"}, "--prompt-column and --completion-column belong together"),
        ({"completion_column": "p"}, "--prompt-column and --completion-column belong together"),
        ({"chat_date": "1 May"}, "--chat-date is 1 May, expected YYYY-MM-DD"),
    ],
)
def test_flags_that_do_not_go_together(read: Read, tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read(tmp_path, **settings)
