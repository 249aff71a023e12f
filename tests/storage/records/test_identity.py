from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from storage.errors import FormatVersionError, RecordError, UnsafePathError
from storage.records.commits import read_commit, read_plan
from storage.records.identity import CacheIdentity, ShardKey, parse_shard_path
from storage.records.manifest import read_manifest
from tests.storage.records.record_fields import first_shard, names, wrong_values

HOSTILE_PATHS = [
    "",
    "/",
    ".",
    "..",
    "../train-00000-of-00001.arrow",
    "soft_targets/../../train-00000-of-00001.arrow",
    "soft_targets/../soft_targets/train-00000-of-00003.arrow",
    "./soft_targets/train-00000-of-00003.arrow",
    "/soft_targets/train-00000-of-00003.arrow",
    "/etc/passwd",
    "soft_targets//train-00000-of-00003.arrow",
    "soft_targets\\train-00000-of-00003.arrow",
    "C:/soft_targets/train-00000-of-00003.arrow",
    "soft_targets/train-00000-of-00003.arrow/",
    "soft_targets/train-00000-of-00003.arrow\n",
    "soft_targets/train-00000-of-00003.arrow\0",
    "soft_targets/train-00000-of-00003.arrow.bak",
    " soft_targets/train-00000-of-00003.arrow",
    "soft_targets/train-00003-of-00003.arrow",
    "soft_targets/train-0-of-3.arrow",
    "soft_targets/train-000000-of-000003.arrow",
    "soft_targets/train-٠٠٠٠٠-of-٠٠٠٠٣.arrow",
    "soft_targets/train--0001-of-00003.arrow",
    "soft_targets/test-00000-of-00003.arrow",
    "logits/train-00000-of-00003.arrow",
    "SOFT_TARGETS/train-00000-of-00003.arrow",
    "commits/soft_targets-train-00000.json",
    "manifest.json",
    f"soft_targets/train-00000-of-{'1' * 5000}.arrow",
    f"soft_targets/train-{'1' * 5000}-of-00003.arrow",
]


@pytest.mark.parametrize("name", names(CacheIdentity))
def test_a_missing_identity_key_is_named(small_cache: Path, forge: SimpleNamespace, name: str) -> None:
    forge.identity(small_cache, lambda content: content.pop(name))
    for read in (read_plan, read_manifest):
        with pytest.raises(RecordError, match=name):
            read(small_cache)


@pytest.mark.parametrize(("name", "value"), wrong_values(CacheIdentity))
def test_an_identity_value_of_the_wrong_type_is_named(
    small_cache: Path, forge: SimpleNamespace, name: str, value: object
) -> None:
    forge.identity(small_cache, lambda content: content.update({name: value}))
    for read in (read_plan, read_manifest):
        with pytest.raises(RecordError, match=name):
            read(small_cache)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 0},
        {"vocab_size": -5},
        {"vocab_size": 2**40},
        {"block_size": 0},
        {"record_batch_rows": 0},
        {"record_batch_rows": -1},
        {"temperatures": []},
        {"temperatures": [0]},
        {"temperatures": [-1.0]},
        {"temperatures": [True]},
        {"temperatures": ["1"]},
        {"temperatures": [[1.0]]},
        {"planned_shards": {"logits": {"train": 1}}},
        {"planned_shards": {"samples": {"test": 1}}},
        {"planned_shards": {"samples": [1]}},
        {"planned_shards": {"samples": 1}},
        {"planned_shards": {"samples": {"train": -1}}},
        {"planned_shards": {"samples": {"train": True}}},
        {"planned_shards": {"samples": {"train": 1.0}}},
        {"planned_shards": {"samples": {"train": "1"}}},
        {"planned_shards": {"samples": {"train": None}}},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_an_identity_that_cannot_be_is_refused(
    small_cache: Path, forge: SimpleNamespace, changes: dict[str, Any]
) -> None:
    forge.identity(small_cache, lambda content: content.update(changes))
    for read in (read_plan, read_manifest):
        with pytest.raises(RecordError, match=next(iter(changes))):
            read(small_cache)


def test_a_plan_of_more_shards_than_can_be_is_refused_without_counting_them(
    small_cache: Path, forge: SimpleNamespace, run_python: Callable[..., Any]
) -> None:
    forge.identity(small_cache, lambda content: content["planned_shards"]["samples"].update(train=10**12))
    code = "import sys, storage; storage.open_cache(sys.argv[1])"
    assert "RecordError" in run_python(code, small_cache).stderr
    (small_cache / "manifest.json").unlink()
    assert "storage.errors." in run_python(code, small_cache).stderr


@pytest.mark.parametrize("version", [4, 7, 10**9])
def test_a_later_version_asks_for_an_upgrade(small_cache: Path, forge: SimpleNamespace, version: int) -> None:
    forge.identity(small_cache, lambda content: content.update(format_version=version, unknown_to_us={}))
    for read in (read_plan, read_manifest):
        with pytest.raises(FormatVersionError, match="upgrade") as caught:
            read(small_cache)
        assert (caught.value.found, caught.value.supported) == (version, 3)


@pytest.mark.parametrize(("is_wanted", "version"), [(None, 2), (False, 2), (True, 1)])
def test_a_version_that_denies_the_column_is_refused(
    small_cache: Path, forge: SimpleNamespace, is_wanted: bool | None, version: int
) -> None:
    def change(content: dict[str, Any]) -> None:
        content["format_version"] = version
        if is_wanted is not None:
            content["config"]["soft_targets"]["is_wanted"] = is_wanted

    forge.identity(small_cache, change)
    for read in (read_plan, read_manifest):
        with pytest.raises(RecordError, match=f"'format_version' is {version}, expected {3 - version}"):
            read(small_cache)


@pytest.mark.parametrize("version", [0, -1, True, 1.0, "1", None, [1]])
def test_a_version_that_is_no_version_is_refused(small_cache: Path, forge: SimpleNamespace, version: object) -> None:
    forge.identity(small_cache, lambda content: content.update(format_version=version))
    for read in (read_plan, read_manifest):
        with pytest.raises(RecordError, match="format_version"):
            read(small_cache)


@pytest.mark.parametrize(
    "name", ["", "teachonce-cache ", "Teachonce-Cache", "webdataset", None, 1, ["teachonce-cache"]]
)
def test_another_format_is_refused(small_cache: Path, forge: SimpleNamespace, name: object) -> None:
    forge.identity(small_cache, lambda content: content.update(format=name))
    for read in (read_plan, read_manifest):
        with pytest.raises(RecordError, match="teachonce-cache"):
            read(small_cache)


@pytest.mark.parametrize("path", HOSTILE_PATHS, ids=lambda path: repr(path)[:50])
def test_a_hostile_shard_path_is_unsafe_everywhere(small_cache: Path, forge: SimpleNamespace, path: str) -> None:
    with pytest.raises(UnsafePathError):
        parse_shard_path(path, "here")
    key = ShardKey(kind="soft_targets", split="train", index=0, num_shards=3)
    forge.record(small_cache / key.commit_path, lambda content: content.update(path=path))
    with pytest.raises(UnsafePathError):
        read_commit(small_cache, key)
    forge.record(small_cache / "manifest.json", lambda content: first_shard(content).update(path=path))
    with pytest.raises(UnsafePathError):
        read_manifest(small_cache)


@pytest.mark.parametrize(
    "key",
    [
        ShardKey(kind="soft_targets", split="train", index=0, num_shards=1),
        ShardKey(kind="beams", split="validation", index=99999, num_shards=100000),
        ShardKey(kind="samples", split="train", index=123456, num_shards=1234567),
    ],
)
def test_every_key_is_found_again_in_its_path(key: ShardKey) -> None:
    assert parse_shard_path(key.path, "here") == key


def test_planned_keys_are_ordered_by_kind_split_and_index(make: SimpleNamespace) -> None:
    keys = make.identity(planned_shards={"beams": {"validation": 1, "train": 2}, "soft_targets": {"train": 1}})
    assert [key.path for key in keys.planned_keys()] == [
        "soft_targets/train-00000-of-00001.arrow",
        "beams/train-00000-of-00002.arrow",
        "beams/train-00001-of-00002.arrow",
        "beams/validation-00000-of-00001.arrow",
    ]
