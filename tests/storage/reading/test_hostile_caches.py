"""Complete caches from strangers, read by everything that users read caches with.

Whatever a stranger wrote, a reader answers with an error of ours in one line, soon, in bounded memory, and
touches nothing outside of the cache; and the readers named in the table answer with the class named there.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from scripts.faults.time_limit import time_limit
from scripts.support.arrow_file import stored_as_it_is
from storage import RowStream, open_cache, verify_cache
from storage.errors import (
    FormatVersionError,
    HashMismatchError,
    IncompleteCacheError,
    MissingFileError,
    RecordError,
    RowError,
    ShardFormatError,
    TeachonceError,
    UnsafePathError,
)
from storage.reading.inspection import render_head, render_summary, summarize
from storage.records.identity import SPLITS
from storage.rows.kinds import KINDS
from student import TrainConfig, train
from student.errors import VocabularyMismatchError
from student.losses.batches import beam_batch, block_batch, sample_batch
from student.losses.targets import soft_target_settings
from tests.places import GOLDEN
from tests.storage import hostile
from tests.storage.hostile import (
    FIRST,
    LAST_BLOCKS,
    ZSTD_MAGIC,
    Forgery,
    array,
    file_path,
    identity,
    inside,
    link,
    manifest,
    manifest_bytes,
    shard,
    shard_batches,
    shard_bytes,
    shard_path,
    special,
    tokenizer,
    tokenizer_with_code,
    values,
    vocabulary,
    without,
)

SECONDS = 120  # a hang, not a slow machine
# Python, torch and a student of a million parameters take about half of it.
MOST_BYTES = {"memory": 2 << 30, "Arrow": 512 << 20}
BIGGEST_INT = 2**70
SOFT, SAMPLES, BEAMS = (FIRST[kind] for kind in KINDS)

Read = Callable[[Path], object]


def read_epochs(cache_dir: Path) -> None:
    """A little more than one epoch of every kind."""
    cache = open_cache(cache_dir)
    for kind in KINDS:
        stream = RowStream(cache, kind, "train", batch_rows=4, seed=0)
        batches = stream.batches()
        for _ in range(stream.num_rows // 4 + 2):
            next(batches)


def read_batches(cache_dir: Path) -> None:
    cache = open_cache(cache_dir)
    for kind in KINDS:
        for split in SPLITS:
            if cache.num_rows(kind, split):
                list(cache.record_batches(kind, split))


def print_summary(cache_dir: Path) -> None:
    summary = summarize(open_cache(cache_dir))
    json.dumps(summary, sort_keys=True).encode()
    assert render_summary(summary).replace("\n", "").isprintable()


def print_head(cache_dir: Path) -> None:
    for kind in KINDS:
        list(render_head(open_cache(cache_dir), kind, "train", 2))


def train_a_student(cache_dir: Path) -> None:
    out = cache_dir.parent / "student"
    sizes = {"batch_blocks": 4, "batch_samples": 4, "batch_beams": 2}
    train(TrainConfig(cache=cache_dir, out=out, preset="mini", max_steps=1, device="cpu", quiet=True, **sizes))


def make_tensors(cache_dir: Path) -> None:
    """Every row as the student's losses see it."""
    cache, device = open_cache(cache_dir), torch.device("cpu")
    settings = {"tail_weight": soft_target_settings(cache).tail_weight, "temperature": 1.0, "device": device}
    for kind, to_tensors in (
        ("soft_targets", lambda rows: block_batch(rows, **settings)),
        ("samples", lambda rows: sample_batch(rows, device)),
        ("beams", lambda rows: beam_batch(rows, device)),
    ):
        for rows in cache.record_batches(kind, "train"):
            to_tensors(rows)


READERS: dict[str, Read] = {
    "open": open_cache,
    "verify": verify_cache,
    "stream": read_epochs,
    "batches": read_batches,
    "inspect": print_summary,
    "head": print_head,
    "tensors": make_tensors,
    "train": train_a_student,
}
ALL = tuple(READERS)
ROWS = ("verify", "stream", "batches", "tensors")
FILES = ("verify", "train")


@dataclass(frozen=True)
class Case:
    """A hostile cache, the readers that must refuse it, and the class of their error."""

    forgery: Forgery
    error: type[TeachonceError]
    refused_by: tuple[str, ...] = ALL


def cases(
    error: type[TeachonceError], forgeries: dict[str, Forgery], refused_by: tuple[str, ...] = ALL
) -> dict[str, Case]:
    return {name: Case(forgery, error, refused_by) for name, forgery in forgeries.items()}


UNSAFE_NAMES = {
    "that climbs out": "../outside/secret",
    "that climbs out later": "tokenizer/../../outside/secret",
    "that is absolute": "/etc/passwd",
    "of a device": "/dev/zero",
    "with a backslash": "tokenizer\\..\\secret",
    "with a drive letter": "C:/secret",
    "with NUL": "README.md\0.json",
    "with a line feed": "README.md\n",
    "with an escape sequence": "\x1b[2J",
    "written backwards": "\u202edm.EMDAER",
    "with half a surrogate pair": "\ud800",
    "of nothing": "",
}

UNSAFE_SHARD_PATHS = UNSAFE_NAMES | {
    "in other digits": SOFT.replace("0", "٠"),
    "in another alphabet": SOFT.replace("s", "ѕ", 1),
    "with a wide slash": SOFT.replace("/", "\uff0f"),
    "of endless length": SOFT.replace("00000", "0" * 5000, 1),
    "with an index beyond the count": SOFT.replace("00000", "00002", 1),
    "of another kind": SOFT.replace("soft_targets", "logits"),
}

RECORDS = (
    cases(UnsafePathError, {f"shard path {name}": shard_path(path) for name, path in UNSAFE_SHARD_PATHS.items()})
    | cases(UnsafePathError, {f"file path {name}": file_path(path) for name, path in UNSAFE_NAMES.items()}, FILES)
    | cases(
        MissingFileError,
        {
            "file path of a Windows device": file_path("NUL"),
            "file path of a home directory": file_path("~/README.md"),
            "file path of a directory": file_path("commits"),
            "file path below a file": file_path("README.md/README.md"),
        },
        FILES,
    )
    | cases(
        FormatVersionError,
        {
            "version of the future": identity(format_version=2),
            "version of the far future, all else unknown": identity(format_version=10**15, shards={}, surprise=None),
        },
    )
    | cases(
        RecordError,
        {
            "version 0": identity(format_version=0),
            "version true": identity(format_version=True),
            "another format": identity(format="webdataset"),
            "shards twice": manifest(lambda m: m["shards"].insert(1, dict(m["shards"][0]))),
            "shards in another order": manifest(lambda m: m["shards"].reverse()),
            "shards of nothing": manifest(lambda m: m["shards"].clear()),
            "shards as an object": manifest(lambda m: m.update(shards={"0": m["shards"][0]})),
            "a shard too few": manifest(lambda m: m["shards"].pop()),
            "files twice": manifest(lambda m: m["files"].append(dict(m["files"][0]))),
            "row ids that overlap": shard(LAST_BLOCKS, first_row_id=4),
            "row ids twice": shard(LAST_BLOCKS, first_row_id=0),
            "row ids with a gap": shard(LAST_BLOCKS, first_row_id=9),
            "rows below zero": shard(LAST_BLOCKS, num_rows=-5),
            "rows beyond int64": shard(LAST_BLOCKS, num_rows=BIGGEST_INT),
            "rows that add up beyond int64": shard(LAST_BLOCKS, num_rows=2**63 - 5, shard_bytes=2**62),
            "rows as text": shard(LAST_BLOCKS, num_rows="5"),
            "rows in a shard of length 0": shard_bytes("soft_targets", lambda _: b""),
            "bytes below zero": shard(LAST_BLOCKS, shard_bytes=-1),
            "tokens as a fraction": shard(LAST_BLOCKS, num_tokens=1.5),
            "planned shards beyond counting": inside("planned_shards", "samples", train=10**12),
            "planned shards of an unknown kind": inside("planned_shards", logits={"train": 1}),
            "planned shards below zero": inside("planned_shards", "samples", validation=-1),
            "planned shards true": inside("planned_shards", "samples", train=True),
            "block size 0": identity(block_size=0),
            "block size true": identity(block_size=True),
            "block size as a fraction": identity(block_size=6.0),
            "block size for a student of 50 GB": identity(block_size=2**24),
            "block size beyond int64": identity(block_size=BIGGEST_INT),
            "vocabulary 0": identity(vocab_size=0),
            "vocabulary beyond int32": identity(vocab_size=2**40),
            "vocabulary as text": identity(vocab_size="50"),
            "batches of 0 rows": identity(record_batch_rows=0),
            "batches of true rows": identity(record_batch_rows=True),
            "batches of endless rows": identity(record_batch_rows=2**62),
            "one batch of 2^40 rows": lambda cache_dir, forge: [
                identity(record_batch_rows=2**62)(cache_dir, forge),
                shard(LAST_BLOCKS, num_rows=2**40)(cache_dir, forge),
            ],
            "temperature as text": identity(temperatures=[1.0, "inf"]),
            "temperature twice": identity(temperatures=[1.0, 2.0, 2]),
            "temperature 0": identity(temperatures=[0.0]),
            "temperatures of nothing": identity(temperatures=[]),
            "temperature that is no number": identity(temperatures=[1.0, float("nan")]),
            "temperature without end": identity(temperatures=[1.0, float("inf")]),
            "teacher as a list": identity(teacher=[["id", "nobody"]]),
            "teacher without a name": without("teacher", "id"),
            "nested deeply": inside("teacher", nested=hostile.nested(300)),
            "nested beyond the stack": manifest_bytes(lambda _: b'{"a":' + b"[" * 200_000),
            "integer of a hundred thousand digits": manifest_bytes(lambda _: b'{"a": ' + b"9" * 100_000 + b"}"),
            "key twice, one of them elsewhere": manifest_bytes(
                lambda content: content.replace(b'"vocab_size": 50', b'"vocab_size": 9999, "vocab_size": 50')
            ),
            "not a number": manifest_bytes(lambda content: content.replace(b'"vocab_size": 50', b'"vocab_size": NaN')),
            "beyond float": manifest_bytes(
                lambda content: content.replace(b'"vocab_size": 50', b'"vocab_size": 1e999')
            ),
            "not UTF-8": manifest_bytes(lambda content: content.replace(b"nobody", b"nobod\xff")),
            "byte order mark": manifest_bytes(lambda content: b"\xef\xbb\xbf" + content),
            "UTF-16": manifest_bytes(lambda content: content.decode().encode("utf-16")),
            "a list": manifest_bytes(lambda content: b"[" + content + b"]"),
            "nothing": manifest_bytes(lambda _: b""),
            "300 MB of nothing": lambda cache_dir, _: os.truncate(cache_dir / "manifest.json", 300_000_000),
            "unsealed": manifest_bytes(lambda content: content.replace(b'"vocab_size": 50', b'"vocab_size": 49')),
            "tail weight 0": inside("config", "soft_targets", tail_weight=0),
            "tail weight below zero": inside("config", "soft_targets", tail_weight=-0.25),
            "tail weight above 1": inside("config", "soft_targets", tail_weight=1.5),
            "tail weight true": inside("config", "soft_targets", tail_weight=True),
            "tail weight as text": inside("config", "soft_targets", tail_weight="0.25"),
            "tail weight in a list": inside("config", "soft_targets", tail_weight=[0.25]),
            "tail weight that is no number": inside("config", "soft_targets", tail_weight=float("nan")),
            "mantissa bits beyond float16": inside("config", "soft_targets", mantissa_bits=11),
            "settings as a list": inside("config", soft_targets=[]),
            "length penalty as text": inside("config", "beams", length_penalty="1"),
            "length penalty null": inside("config", "beams", length_penalty=None),
            "length penalty that is no number": inside("config", "beams", length_penalty=float("nan")),
            "length penalty beyond float": inside("config", "beams", length_penalty=10**400),
            "new tokens for a student of terabytes": inside("config", "samples", max_new_tokens=10**12),
            "sampling temperature 0": inside("config", "samples", temperature=0),
            "sampling temperature as text": inside("config", "samples", temperature="1"),
            "sampling temperature beyond float": inside("config", "samples", temperature=10**400),
            "nucleus of nothing": inside("config", "samples", top_p=0.0),
            "nucleus of more than all": inside("config", "samples", top_p=1.5),
            "nucleus true": inside("config", "samples", top_p=True),
            "prompt length as text": inside("data", "longest_prompt_tokens", beams="3"),
            "prompt lengths as a list": inside("data", longest_prompt_tokens=[3, 3]),
            "context of 0 tokens": inside("teacher", context_length=0),
            "context as text": inside("teacher", context_length="64"),
            "end of text below zero": inside("tokenizer", eos_token_id=-1),
            "end of text outside the vocabulary": inside("tokenizer", eos_token_id=50),
        },
    )
    | cases(
        RecordError,
        {
            "tail weight not stated": without("config", "soft_targets", "tail_weight"),
            "length penalty not stated": without("config", "beams", "length_penalty"),
            "new tokens not stated": without("config", "samples", "max_new_tokens"),
            "prompt lengths not stated": without("data", "longest_prompt_tokens"),
            "settings not stated": identity(config={}),
            "context not stated": without("teacher", "context_length"),
            "tokenizer not stated": identity(tokenizer={}),
        },
        ("train",),
    )
    | cases(
        HashMismatchError,
        {
            "more rows and bytes than memory": shard(LAST_BLOCKS, num_rows=10**12, shard_bytes=10**15),
            "more bytes than there are": shard(SOFT, shard_bytes=10**9),
        },
        ROWS,
    )
)

NOT_FILES = (
    cases(
        UnsafePathError,
        {
            "manifest is a link": link("manifest.json"),
            "directory of shards is a link": link("soft_targets"),
        },
        ROWS,
    )
    | cases(
        UnsafePathError,
        {
            "shard is a link": link(SOFT),
            "shard is a link to itself": link(SOFT, lambda cache_dir: cache_dir / SOFT),
            "shard is a link to a device": link(SOFT, lambda _: Path("/dev/zero")),
        },
        ROWS,
    )
    | cases(
        UnsafePathError,
        {"plan is a link": link("plan.json"), "directory of commits is a link": link("commits")},
        ("verify",),
    )
    | cases(
        UnsafePathError,
        {
            "tokenizer's file is a link": link("tokenizer/tokenizer.json"),
            "directory of the tokenizer is a link": link("tokenizer"),
            "README is a link": link("README.md"),
        },
        FILES,
    )
    | cases(
        MissingFileError,
        {
            "shard is a pipe": special(SOFT, os.mkfifo),
            "shard is a socket": special(SOFT, hostile.bind_socket),
            "shard is a directory": special(SOFT, Path.mkdir),
            "shard is a device": special(SOFT, lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))),
        },
        ROWS,
    )
    | cases(MissingFileError, {"tokenizer's file is a pipe": special("tokenizer/tokenizer.json", os.mkfifo)}, FILES)
    | cases(RecordError, {"plan is a pipe": special("plan.json", os.mkfifo)}, ("verify",))
    | cases(RecordError, {"commit is a pipe": special("commits/samples-train-00000.json", os.mkfifo)}, ("verify",))
    | cases(IncompleteCacheError, {"manifest is a pipe": special("manifest.json", os.mkfifo)})
)


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
        b"ARROW:extension:metadata": pickle.dumps(Boom(hostile.outside(cache_dir) / "code-was-run")),
    }
    change: Callable[[pa.Field], pa.Field] = lambda field: field.with_metadata(described)  # noqa: E731
    shard_batches("soft_targets", lambda batches: hostile.with_field(batches, "row_id", change))(cache_dir, forge)


def cast(batches: hostile.Batches, name: str, column_type: pa.DataType) -> hostile.Batches:
    at = batches[0].schema.get_field_index(name)
    field = pa.field(name, column_type, nullable=False)
    return [batch.set_column(at, field, batch.column(name).cast(column_type)) for batch in batches]


def extended(batches: hostile.Batches) -> hostile.Batches:
    field = pa.field("text", pa.json_(pa.large_string()), nullable=False)
    at = batches[0].schema.get_field_index("text")
    return [
        batch.set_column(at, field, pa.ExtensionArray.from_storage(field.type, batch.column("text")))
        for batch in batches
    ]


def dictionaries(batches: hostile.Batches) -> hostile.Batches:
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
        "a dictionary": shard_batches("samples", dictionaries),
        "a null": array("soft_targets", "row_id", with_null),
        "an extension type": shard_batches("samples", extended),
        "an extension type with a pickle": with_pickled_type,
        "metadata of a column": shard_batches(
            "soft_targets", lambda b: hostile.with_field(b, "ids", lambda field: field.with_metadata({"a": "b"}))
        ),
        "metadata of the schema": shard_batches(
            "soft_targets", lambda b: [x.replace_schema_metadata({"pandas": "{"}) for x in b]
        ),
        "a buffer that claims a gigabyte": shard_bytes("soft_targets", hostile.claim(2**30)),
        "a buffer that claims a terabyte": shard_bytes("soft_targets", hostile.claim(2**40)),
        "a buffer that claims all": shard_bytes("samples", hostile.claim(2**63 - 1)),
        "a buffer that claims less than nothing": shard_bytes("beams", hostile.claim(-2)),
        "a buffer that claims to be stored as it is": shard_bytes("beams", hostile.claim(-1)),
        "a buffer that unpacks to 400 MB of zeros": shard_batches("soft_targets", hostile.bomb(400 << 20)),
        "offsets that go backwards": array("soft_targets", "ids", hostile.with_offsets(0, 20, 10)),
        "offsets beyond the values": array("soft_targets", "ids", hostile.with_offsets(0, 10**9)),
        "offsets beyond int32": array("beams", "texts", hostile.with_offsets(0, 2**62)),
        "a list of fewer values": shard_bytes("soft_targets", hostile.column_length(2, 5)),
        "a list of more values": shard_bytes("soft_targets", hostile.column_length(2, 2**40)),
        "rows below zero in a batch": shard_bytes("soft_targets", hostile.batch_length(-1)),
        "rows beyond counting in a batch": shard_bytes("soft_targets", hostile.batch_length(2**62)),
        "rows below zero in a column": shard_bytes("soft_targets", hostile.column_length(0, -1)),
        "rows beyond counting in a column": shard_bytes("soft_targets", hostile.column_length(0, 2**62)),
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
        "in the other byte order": shard_bytes("soft_targets", hostile.big_endian),
        "a footer of 2 GB": shard_bytes("soft_targets", footer_length(2**31 - 1)),
        "a footer below zero": shard_bytes("soft_targets", footer_length(-1)),
        "a batch outside of the file": shard_bytes("soft_targets", hostile.in_footer(0, "<q", 2**40)),
        "a batch before the file": shard_bytes("soft_targets", hostile.in_footer(0, "<q", -8)),
        "a batch of 2 GB of metadata": shard_bytes("soft_targets", hostile.in_footer(0, "<i", 2**31 - 8, 8)),
        "a batch with a body of a petabyte": shard_bytes("soft_targets", hostile.in_footer(0, "<q", 2**50, 16)),
        "a batch without a body": shard_bytes("soft_targets", hostile.in_footer(1, "<q", 0, 16)),
        "text that is not UTF-8": array("samples", "text", broken_text),
    },
    ROWS,
)


def at(row: int, place: int, value: object) -> Callable[[list[Any]], None]:
    """Set one element of one row."""
    return lambda rows: rows[row].__setitem__(place, value)


def every(value: object) -> Callable[[list[Any]], None]:
    """Set every row."""
    return lambda rows: rows.__setitem__(slice(None), [value] * len(rows))


def long_row(cache_dir: Path, forge: SimpleNamespace) -> None:
    """One completion longer than the settings allow."""

    def change(batches: hostile.Batches) -> hostile.Batches:
        batch = forge.column(batches[0], "completion_ids", lambda rows: rows.__setitem__(0, [1] * 500))
        return [
            forge.column(batch, "completion_logprobs", lambda rows: rows.__setitem__(0, [-1.0] * 500)),
            *batches[1:],
        ]

    shard_batches("samples", change)(cache_dir, forge)


def wide_head(cache_dir: Path, forge: SimpleNamespace) -> None:
    """One head of all 50 entries, against which a student would pad all others."""

    def change(batches: hostile.Batches) -> hostile.Batches:
        rows = batches[0].to_pylist()
        row = rows[1]
        row["ids"] = [*range(50), *row["ids"][row["head_size"][0] + row["tail_size"][0] :]]
        row["logprobs"] = [float(np.float16(-np.log(50)))] * 50 + row["logprobs"][row["head_size"][0] :]
        row["head_size"][0], row["tail_size"][0], row["tail_logprob"][0] = 50, 0, -np.inf
        return [pa.RecordBatch.from_pylist(rows, schema=batches[0].schema), *batches[1:]]

    shard_batches("soft_targets", change)(cache_dir, forge)


def other_entries(cache_dir: Path, forge: SimpleNamespace) -> None:
    """A masked target that has entries: those of its neighbour."""

    def change(batches: hostile.Batches) -> hostile.Batches:
        swap: Callable[[list[Any]], None] = lambda rows: rows[0].insert(0, rows[0].pop(1))  # noqa: E731
        batch = batches[0]
        for name in ("head_size", "tail_size"):
            batch = forge.column(batch, name, swap)
        return [batch, *batches[1:]]

    shard_batches("soft_targets", change)(cache_dir, forge)


BROKEN_ROWS = {
    "ids outside the vocabulary": values("soft_targets", "ids", lambda rows: rows[0].__setitem__(2, 50)),
    "blocks outside the vocabulary": values("soft_targets", "input_ids", at(0, 3, 65535)),
    "labels outside the vocabulary": values("soft_targets", "input_ids", at(1, 6, 50)),
    "ids twice in a head": values("soft_targets", "ids", lambda rows: rows[0].__setitem__(1, rows[0][0])),
    "a logprob that is no number": values("soft_targets", "logprobs", at(0, 0, float("nan"))),
    "a logprob without end": values("soft_targets", "logprobs", at(0, 0, float("-inf"))),
    "a logprob above 0": values("soft_targets", "logprobs", at(0, 0, 0.5)),
    "a tail above mass 1": values("soft_targets", "tail_logprob", at(1, 0, 0.5)),
    "a tail that is no number": values("soft_targets", "tail_logprob", at(1, 0, float("nan"))),
    "mass above 1": values("soft_targets", "tail_logprob", at(1, 0, 0.0)),
    "mass below 1": values("soft_targets", "tail_logprob", every([float("-inf")] * 6)),
    "entropy below 0": values("soft_targets", "entropy", at(1, 0, -1.0)),
    "entropy above log V": values("soft_targets", "entropy", at(1, 0, 4.0)),
    "entropy that is no number": values("soft_targets", "entropy", at(1, 0, float("nan"))),
    "a label without probability": values("soft_targets", "label_logprob", at(1, 0, float("-inf"))),
    "a tempered tail without end": values("soft_targets", "tail_logmass_at_2", at(1, 0, float("inf"))),
    "heads that overflow": values("soft_targets", "head_size", at(1, 0, 65535)),
    "tails that overflow": values("soft_targets", "tail_size", every([65535] * 6)),
    "a masked target with entries": other_entries,
    "segments beyond the block": values("soft_targets", "segment_lengths", at(1, 0, 8)),
    "segments of 2^32 tokens": values("soft_targets", "segment_lengths", at(1, 0, 2**32 - 1)),
    "segments of nothing": values("soft_targets", "segment_lengths", lambda rows: rows[1].append(0)),
    "a head of the whole vocabulary": wide_head,
    "row ids elsewhere": values("soft_targets", "row_id", lambda ids: ids.__setitem__(slice(None), [5, 6, 7, 8])),
    "row ids that repeat": values("soft_targets", "row_id", every(0)),
    "the first batch twice": shard_bytes("soft_targets", hostile.footer_lists_first_batch_twice),
    "a prompt of nothing": values("samples", "prompt_ids", lambda rows: rows[0].clear()),
    "a completion of nothing": values("samples", "completion_ids", lambda rows: rows[0].clear()),
    "a completion outside the vocabulary": values("samples", "completion_ids", at(0, 0, 50)),
    "a completion beyond its settings": long_row,
    "a completion of more logprobs": values("samples", "completion_logprobs", lambda rows: rows[0].append(-1.0)),
    "a completion's logprob above 0": values("samples", "completion_logprobs", at(0, 0, 1.0)),
    "a reason of nobody": values("samples", "finish_reason", lambda reasons: reasons.__setitem__(0, "rm -rf")),
    "a beam's prompt of nothing": values("beams", "prompt_ids", lambda rows: rows[0].clear()),
    "a beam's prompt beyond its settings": values("beams", "prompt_ids", lambda rows: rows[0].extend([1] * 500)),
    "candidates of other lengths": values("beams", "candidate_lengths", at(1, 0, 9)),
    "candidates of 2^32 tokens": values("beams", "candidate_lengths", at(0, 0, 2**32 - 1)),
    "no candidates": values("beams", "candidate_lengths", lambda rows: rows[0].clear()),
    "candidates not best first": values("beams", "scores", lambda rows: rows[2].reverse()),
    "a score that is no number": values("beams", "scores", at(0, 0, float("nan"))),
    "a score above 0": values("beams", "scores", at(0, 0, 1.0)),
    "a score more": values("beams", "scores", lambda rows: rows[0].append(-9.0)),
    "a candidate's reason of nobody": values("beams", "finish_reasons", at(0, 0, "")),
    "a candidate twice": values("beams", "candidate_ids", every([7] * 20)),
}  # fmt: skip


def with_extra_tokenizer_file(cache_dir: Path, forge: SimpleNamespace) -> None:
    """A file that the manifest does not list, and that transformers would read."""
    hostile.write_json(cache_dir / "tokenizer/config.json", {"model_type": "gpt2"})


def with_extra_tokenizer_link(cache_dir: Path, forge: SimpleNamespace) -> None:
    (cache_dir / "tokenizer/config.json").symlink_to(hostile.outside(cache_dir) / "secret")


def panics(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}


TOKENIZERS = (
    cases(
        RecordError,
        {
            "tokenizer with code": tokenizer_with_code(
                "tokenizer_config.json",
                tokenizer_class="Stranger",
                auto_map={"AutoTokenizer": ["stranger.Stranger"] * 2},
            ),
            "tokenizer that is none": tokenizer("tokenizer.json", lambda content: content.clear()),
            "tokenizer that is a list": tokenizer("tokenizer.json", lambda content: [1]),
            "tokenizer that panics": tokenizer("tokenizer.json", panics),
            "tokenizer with ids below zero": tokenizer("tokenizer.json", lambda c: c["model"]["vocab"].update(a=-1)),
            "tokenizer settings that are a list": tokenizer("tokenizer_config.json", lambda content: [1]),
            "tokenizer of a class that is none": tokenizer(
                "tokenizer_config.json", lambda c: c.update(tokenizer_class=[1])
            ),
            "tokenizer with an end of text that is none": tokenizer(
                "tokenizer_config.json", lambda c: c.update(eos_token={"content": 5})
            ),
            "tokenizer with a code map that is none": tokenizer(
                "tokenizer_config.json", lambda c: c.update(auto_map=7)
            ),
        },
        ("train",),
    )
    | cases(
        VocabularyMismatchError,
        {
            "tokenizer with more tokens": vocabulary(51),
            "tokenizer with an id outside": tokenizer("tokenizer.json", lambda c: c["model"]["vocab"].update(t49=5000)),
            "vocabulary of padding": identity(vocab_size=60_000),
        },
        ("train",),
    )
    | cases(HashMismatchError, {"tokenizer with a file more": with_extra_tokenizer_file}, ("train",))
    | cases(UnsafePathError, {"tokenizer with a link more": with_extra_tokenizer_link}, ("train",))
    | cases(MissingFileError, {"no tokenizer": lambda cache_dir, _: shutil.rmtree(cache_dir / "tokenizer")}, FILES)
)

HOSTILE = RECORDS | NOT_FILES | ARROW | cases(RowError, BROKEN_ROWS, ROWS) | TOKENIZERS


class Watch:
    """Notes what is opened or listed below a directory while it is on."""

    def __init__(self) -> None:
        self.directory: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.directory is None or event not in ("open", "os.listdir", "os.scandir"):
            return
        path = arguments[0]
        if isinstance(path, str | bytes | os.PathLike) and "\0" not in os.fsdecode(path):
            real = os.path.realpath(os.fsdecode(path))
            if real.startswith(self.directory + os.sep):
                self.seen.append(real)

    @contextlib.contextmanager
    def on(self, directory: Path) -> Iterator[list[str]]:
        self.directory, self.seen = os.path.realpath(directory), []
        try:
            yield self.seen
        finally:
            self.directory = None


@pytest.fixture(scope="session")
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory, make: SimpleNamespace, forge: SimpleNamespace) -> Path:
    return hostile.write_good_cache(tmp_path_factory.mktemp("good") / "cache", make, forge)


@pytest.fixture
def stranger(pristine: Path, tmp_path: Path) -> Path:
    """A good cache that the test may turn hostile, and a secret beside it."""
    (hostile.outside(tmp_path / "cache") / "secret").write_text("{}")
    return Path(shutil.copytree(pristine, tmp_path / "cache"))


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Fail what hangs, or takes more memory than a cache of some kilobytes may."""
    before = peaks()
    with time_limit(SECONDS):
        yield
    for name, peak in peaks().items():
        assert peak <= max(before[name], MOST_BYTES[name]), f"{name} peaked at {peak} bytes"


def peaks() -> dict[str, int]:
    """The most bytes that this process ever held, all in all and for Arrow."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)
    return {"memory": resident, "Arrow": pa.default_memory_pool().max_memory()}


def errors_of(read: Read, cache_dir: Path) -> list[TeachonceError]:
    """Our errors, raised or returned; any other exception passes through."""
    try:
        return list(getattr(read(cache_dir), "problems", ()))
    except TeachonceError as error:
        return [error]


def test_the_cache_that_all_others_are_made_of_is_good(stranger: Path) -> None:
    assert verify_cache(stranger).problems == ()
    for read in READERS.values():
        assert errors_of(read, stranger) == []


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_cache_is_refused(
    stranger: Path, forge: SimpleNamespace, watch: Watch, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # a user who agrees to everything
    case = HOSTILE[name]
    try:
        case.forgery(stranger, forge)
    except PermissionError:
        pytest.skip("only root makes devices")
    outside = hostile.outside(stranger)
    before = hostile.snapshot(outside) | hostile.snapshot(stranger)
    for reader, read in READERS.items():
        if reader == "train" and reader not in case.refused_by:
            continue  # a step takes long, and reads as `stream` does
        with bounded(), watch.on(outside) as seen:
            errors = errors_of(read, stranger)
        assert seen == [], reader
        assert all("\n" not in str(error) and str(error).isprintable() for error in errors), (reader, errors)
        if reader in case.refused_by:
            assert [type(error) for error in errors if type(error) is case.error], (reader, errors)
    assert hostile.snapshot(outside) | hostile.snapshot(stranger) == before


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("answer", ["y", "n"])
def test_code_beside_a_tokenizer_is_never_run_nor_offered(
    stranger: Path, forge: SimpleNamespace, name: str, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = []
    monkeypatch.setattr("builtins.input", lambda *question: questions.append(question) or answer)
    code = {"AutoTokenizer": ["stranger.Stranger", "stranger.Stranger"], "AutoConfig": "stranger.Stranger"}
    tokenizer_with_code(name, auto_map=code, model_type="stranger", trust_remote_code=True)(stranger, forge)
    errors_of(train_a_student, stranger)
    assert questions == []
    assert not (hostile.outside(stranger) / "code-was-run").exists()


def test_a_tokenizer_with_fewer_tokens_than_rows_of_the_output_is_served(
    stranger: Path, forge: SimpleNamespace
) -> None:
    vocabulary(45)(stranger, forge)
    assert errors_of(train_a_student, stranger) == []


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


def test_a_cache_of_the_first_version_is_still_read() -> None:
    golden = GOLDEN / "cache"
    with bounded():
        assert verify_cache(golden).problems == ()
        for read in (read_epochs, read_batches, print_summary, print_head):
            assert errors_of(read, golden) == []


def test_there_is_a_crowd_of_strangers() -> None:
    assert len(HOSTILE) == len(RECORDS) + len(NOT_FILES) + len(ARROW) + len(BROKEN_ROWS) + len(TOKENIZERS) > 60
