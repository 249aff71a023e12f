"""Records that a stranger wrote: paths, numbers and settings that no cache of ours has."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from storage.errors import FormatVersionError, HashMismatchError, MissingFileError, RecordError, UnsafePathError
from tests.storage.reading.forging import (
    FIRST,
    LAST_BLOCKS,
    file_path,
    identity,
    inside,
    manifest,
    manifest_bytes,
    nested,
    shard,
    shard_bytes,
    shard_path,
    without,
)
from tests.storage.reading.readers import BIGGEST_INT, FILES, ROWS, Case, cases

SOFT = FIRST["soft_targets"]


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
            "version of the future": identity(format_version=4),
            "version of the far future, all else unknown": identity(format_version=10**15, shards={}, surprise=None),
        },
    )
    | cases(
        RecordError,
        {
            "version 2 without its column": identity(format_version=2),
            "version 3 without what it is for": identity(format_version=3),
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
            "nested deeply": inside("teacher", nested=nested(300)),
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
            "mantissa bits of scalars beyond float16": inside("config", "soft_targets", scalar_mantissa_bits=11),
            "wanted targets in version 1": inside("config", "soft_targets", is_wanted=True),
            "wanted targets as a number": inside("config", "soft_targets", is_wanted=1),
            "wanted targets as text": inside("config", "soft_targets", is_wanted="true"),
            "wanted targets null": inside("config", "soft_targets", is_wanted=None),
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
            "a beginning outside the vocabulary": inside("tokenizer", beginning_ids=[50]),
            "a beginning that is no list": inside("tokenizer", beginning_ids=1),
            "a beginning without an end": inside("tokenizer", beginning_ids=[1] * 300),
            "ends that are no ids": inside("tokenizer", end_ids=[True, "2"]),
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


@pytest.mark.parametrize("name", RECORDS)
def test_a_hostile_cache_is_refused(require_refused: Callable[[Case], None], name: str) -> None:
    require_refused(RECORDS[name])
