"""Shards that are no Arrow files as ours are: other types, lengths that lie, buffers that unpack to too much."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from scripts.support.arrow_file import stored_as_it_is
from storage import verify_cache
from storage.errors import ShardFormatError
from storage.rows.kinds import KINDS
from tests.storage.hostile import (
    ZSTD_MAGIC,
    Batches,
    batch_length,
    big_endian,
    bomb,
    claim,
    column_length,
    in_footer,
    list_offsets,
    one_message_for,
    with_field,
    with_offsets,
)
from tests.storage.reading.forging import FIRST, array, identity, inside, outside, shard_batches, shard_bytes
from tests.storage.reading.readers import ROWS, Case, cases, errors_of


class Boom:
    """What unpickles by making a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.proof),))


def with_pickled_type(cache_dir: Path, forge: SimpleNamespace) -> None:
    """Extension types of pyarrow once unpickled what the file says."""
    described = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Boom(outside(cache_dir) / "code-was-run")),
    }
    change: Callable[[pa.Field], pa.Field] = lambda field: field.with_metadata(described)  # noqa: E731
    shard_batches("soft_targets", lambda batches: with_field(batches, "row_id", change))(cache_dir, forge)


def cast(batches: Batches, name: str, column_type: pa.DataType) -> Batches:
    at = batches[0].schema.get_field_index(name)
    field = pa.field(name, column_type, nullable=False)
    return [batch.set_column(at, field, batch.column(name).cast(column_type)) for batch in batches]


def extended(batches: Batches) -> Batches:
    field = pa.field("text", pa.json_(pa.large_string()), nullable=False)
    at = batches[0].schema.get_field_index("text")
    return [
        batch.set_column(at, field, pa.ExtensionArray.from_storage(field.type, batch.column("text")))
        for batch in batches
    ]


def dictionaries(batches: Batches) -> Batches:
    at = batches[0].schema.get_field_index("finish_reason")
    return [
        batch.set_column(at, "finish_reason", batch.column("finish_reason").dictionary_encode()) for batch in batches
    ]


def with_null(column: pa.Array) -> pa.Array:
    return pa.array([None, *column.to_pylist()[1:]], type=column.type)


def broken_text(column: pa.Array) -> pa.Array:
    buffers = column.buffers()
    data = bytearray(buffers[2].to_pybytes())
    data[0] = 0xFF
    return pa.Array.from_buffers(column.type, len(column), [*buffers[:2], pa.py_buffer(bytes(data))])


def footer_length(number: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:-10] + number.to_bytes(4, "little", signed=True) + content[-6:]


ARROW = cases(
    ShardFormatError,
    {
        "columns of other types": shard_batches("soft_targets", lambda b: cast(b, "row_id", pa.uint64())),
        "a column more": shard_batches("soft_targets", lambda b: [x.append_column("more", x.column(0)) for x in b]),
        "a column fewer": shard_batches("soft_targets", lambda b: [x.select(x.schema.names[:-1]) for x in b]),
        "a column that the settings promise": lambda cache_dir, forge: [
            inside("config", "soft_targets", is_wanted=True)(cache_dir, forge),
            identity(format_version=2)(cache_dir, forge),
        ],
        "a dictionary": shard_batches("samples", dictionaries),
        "a null": array("soft_targets", "row_id", with_null),
        "an extension type": shard_batches("samples", extended),
        "an extension type with a pickle": with_pickled_type,
        "metadata of a column": shard_batches(
            "soft_targets", lambda b: with_field(b, "ids", lambda field: field.with_metadata({"a": "b"}))
        ),
        "metadata of the schema": shard_batches(
            "soft_targets", lambda b: [x.replace_schema_metadata({"pandas": "{"}) for x in b]
        ),
        "a buffer that claims a gigabyte": shard_bytes("soft_targets", claim(2**30)),
        "a buffer that claims a terabyte": shard_bytes("soft_targets", claim(2**40)),
        "a buffer that claims all": shard_bytes("samples", claim(2**63 - 1)),
        "a buffer that claims less than nothing": shard_bytes("beams", claim(-2)),
        "a buffer that claims to be stored as it is": shard_bytes("beams", claim(-1)),
        "a buffer that unpacks to 400 MB of zeros": shard_batches("soft_targets", bomb(400 << 20)),
        "offsets that go backwards": array("soft_targets", "ids", with_offsets(0, 20, 10)),
        "offsets beyond the values": array("soft_targets", "ids", with_offsets(0, 10**9)),
        "offsets beyond int32": array("beams", "texts", with_offsets(0, 2**62)),
        "offsets that begin far beyond the values": shard_bytes("beams", list_offsets("texts", 2**40, 2**40 + 1)),
        "offsets that begin below zero": shard_bytes("beams", list_offsets("texts", -(2**40), 0)),
        "offsets that end far beyond the values": shard_bytes("beams", list_offsets("texts", None, 2**40)),
        "offsets of ids that end far beyond the values": shard_bytes("soft_targets", list_offsets("ids", None, 2**40)),
        "one description for 4,000 batches": shard_bytes("soft_targets", one_message_for(4000, 20_000)),
        "a list of fewer values": shard_bytes("soft_targets", column_length(2, 5)),
        "a list of more values": shard_bytes("soft_targets", column_length(2, 2**40)),
        "rows below zero in a batch": shard_bytes("soft_targets", batch_length(-1)),
        "rows beyond counting in a batch": shard_bytes("soft_targets", batch_length(2**62)),
        "rows below zero in a column": shard_bytes("soft_targets", column_length(0, -1)),
        "rows beyond counting in a column": shard_bytes("soft_targets", column_length(0, 2**62)),
        "a batch too many": shard_batches("soft_targets", lambda b: [*b, b[0]]),
        "a batch too few": shard_batches("soft_targets", lambda b: b[:1]),
        "no batches": shard_batches("soft_targets", lambda b: [b[0].slice(0, 0)]),
        "batches cut elsewhere": shard_batches("soft_targets", lambda b: [b[0].slice(0, 3), b[1]]),
        "truncated": shard_bytes("soft_targets", lambda content: content[:-100]),
        "truncated at both ends": shard_bytes("soft_targets", lambda content: content[8:]),
        "magic alone": shard_bytes("soft_targets", lambda _: b"ARROW1\0\0ARROW1"),
        "a stream": shard_batches("soft_targets", lambda b: b, new=pa.ipc.new_stream),
        "compressed with LZ4": shard_batches("soft_targets", lambda b: b, compression="lz4"),
        "not compressed": shard_batches("soft_targets", lambda b: b, compression=None),
        "in the other byte order": shard_bytes("soft_targets", big_endian),
        "a footer of 2 GB": shard_bytes("soft_targets", footer_length(2**31 - 1)),
        "a footer below zero": shard_bytes("soft_targets", footer_length(-1)),
        "a batch outside of the file": shard_bytes("soft_targets", in_footer(0, "<q", 2**40)),
        "a batch before the file": shard_bytes("soft_targets", in_footer(0, "<q", -8)),
        "a batch of 2 GB of metadata": shard_bytes("soft_targets", in_footer(0, "<i", 2**31 - 8, 8)),
        "a batch with a body of a petabyte": shard_bytes("soft_targets", in_footer(0, "<q", 2**50, 16)),
        "a batch without a body": shard_bytes("soft_targets", in_footer(1, "<q", 0, 16)),
        "text that is not UTF-8": array("samples", "text", broken_text),
    },
    ROWS,
)


@pytest.mark.parametrize("name", ARROW)
def test_a_hostile_cache_is_refused(require_refused: Callable[[Case], None], name: str) -> None:
    require_refused(ARROW[name])


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_may_hold_buffers_that_compression_would_not_make_smaller(
    stranger: Path, forge: SimpleNamespace, kind: str
) -> None:
    content = (stranger / FIRST[kind]).read_bytes()
    shard_bytes(kind, stored_as_it_is)(stranger, forge)
    changed = (stranger / FIRST[kind]).read_bytes()
    assert ZSTD_MAGIC in content
    assert ZSTD_MAGIC not in changed
    assert errors_of(verify_cache, stranger) == []
