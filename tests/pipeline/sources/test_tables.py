"""Parquet and Arrow files whose other columns no reader may touch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import SamplesConfig
from pipeline.errors import ColumnError, NoSuchDataError
from pipeline.sources.corpus import Corpus
from tests.places import ROOT

CHAT = [{"role": "user", "content": "Why?"}]


def other_columns() -> dict[str, pa.Array]:
    """Columns that stopped a run: maps, pictures that are none, features that nobody knows, names with a dot."""
    picture = pa.array([{"bytes": b"no picture", "path": None}] * 2)
    return {
        "tags": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
        "picture": picture,
        "sound": picture,
        "strange": pa.array([1, 2]),
        "text.lang": pa.array(["en", "de"]),
        "span": pa.array([1, 2], pa.duration("ms")),
    }


def hugging_face_schema(table: pa.Table) -> pa.Table:
    features = {
        "text": {"dtype": "string", "_type": "Value"},
        "picture": {"_type": "Image"},
        "sound": {"_type": "Audio"},
        "strange": {"_type": "NobodyKnows"},
    }
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


TYPES = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()]


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_only_the_asked_columns_are_read(read: Callable[..., list[str]], tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({**other_columns(), "text": pa.array(["one", None]).cast(kind)})
    if kind != pa.string_view():
        pq.write_table(hugging_face_schema(table), tmp_path / "a.parquet")
        assert read(tmp_path / "a.parquet") == ["one", ""]
    for name, writer in (("file.arrow", pa.ipc.new_file), ("stream.arrow", pa.ipc.new_stream)):
        with writer(tmp_path / name, table.schema) as sink:
            sink.write_table(table)
        assert read(tmp_path / name) == ["one", ""]


def test_rows_keep_their_order_over_row_groups_and_files(read: Callable[..., list[str]], tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(1000)]
    pq.write_table(pa.table({"text": texts[:700]}), tmp_path / "a.parquet", row_group_size=150)
    pq.write_table(pa.table({"id": range(300), "text": texts[700:]}), tmp_path / "b.parquet", row_group_size=299)
    assert read(tmp_path) == texts


def test_chats_come_as_lists_of_messages(open_data: Callable[..., Corpus], tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "chat": [CHAT], "n": [1]}), tmp_path / "a.parquet")
    corpus = open_data(tmp_path / "a.parquet", samples=SamplesConfig(prompt_column="chat"))
    assert [document.prompts for document in corpus.documents()] == [{"chat": CHAT}]


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"body": ["one"], "id": [1]}, "column 'text': not among ['body', 'id']"),
        ({"text": [b"one"]}, "row 1 holds bytes, not text"),
        ({"text": [3]}, "row 1 holds int, not text"),
    ],
)
def test_a_column_that_is_no_text(
    read: Callable[..., list[str]], tmp_path: Path, columns: dict[str, list[Any]], found: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ColumnError) as caught:
        read(tmp_path / "a.parquet")
    assert found in str(caught.value)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_two_columns_of_one_name(read: Callable[..., list[str]], tmp_path: Path, suffix: str) -> None:
    text = pa.array(["one"])
    table = pa.table([text, text, text, text], names=["text", "text", "other", "other"])
    if suffix == "parquet":
        pq.write_table(table, tmp_path / "a.parquet")
    else:
        with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as sink:
            sink.write_table(table)
    with pytest.raises(NoSuchDataError, match="several columns have one name, 'text'; rename all but one"):
        read(tmp_path / f"a.{suffix}")


def test_a_prompt_column_that_is_missing_is_named_beside_all_there_are(
    open_data: Callable[..., Corpus], tmp_path: Path
) -> None:
    pq.write_table(pa.table({"text": ["a"], "id": [1]}), tmp_path / "a.parquet")
    corpus = open_data(tmp_path / "a.parquet", samples=SamplesConfig(prompt_column="question"))
    with pytest.raises(ColumnError, match=r"'question': not among \['id', 'text'\] of row 1"):
        list(corpus.documents())


@pytest.mark.parametrize("name", ["a.parquet.gz", "a.arrow.zst"])
def test_a_compressed_table_says_what_to_do(read: Callable[..., list[str]], tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PAR1")
    with pytest.raises(NoSuchDataError, match="cannot be read in parts; decompress the file"):
        read(tmp_path / name)


def test_local_files_need_no_cache_directory(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "a.parquet")
    (tmp_path / "home").write_text("a file, in which no directory can be made")
    program = (
        "import sys; from pipeline import PrecomputeConfig; from pipeline.sources.corpus import open_corpus\n"
        "corpus = open_corpus(PrecomputeConfig(teacher='unused', data=sys.argv[1], out='unused'))\n"
        "print([''.join(document.pieces) for document in corpus.documents()], 'datasets' in sys.modules)"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HOME": str(tmp_path / "home")}
    line = [sys.executable, "-c", program, str(tmp_path / "a.parquet")]
    done = subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("['one'] False\n", 0), done.stderr
