from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from storage.errors import FormatVersionError, MissingFileError, RecordError, UnsafePathError
from storage.records.manifest import (
    CacheIdentity,
    FileRecord,
    Manifest,
    ShardKey,
    ShardRecord,
    check_commit,
    parse_shard_path,
    read_commit,
    read_manifest,
    read_plan,
    write_commit,
    write_manifest,
    write_plan,
)
from storage.records.records import MAX_RECORD_BYTES

Change = Callable[[dict[str, Any]], object]

SHARD = "soft_targets/train-00001-of-00003.arrow"
JSON_VALUES: list[Any] = [None, True, "x", 1.5, [], {}]
FITTING = {"int": (), "str": ("x",), "float": (1.5,), "dict": ({},), "tuple": ()}

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


def wrong_values(record_class: type) -> list[tuple[str, Any]]:
    """Each field with each JSON value of another type."""
    kinds = {field.name: str(field.type).partition("[")[0] for field in dataclasses.fields(record_class)}
    return [
        (name, value)
        for name, kind in kinds.items()
        for value in JSON_VALUES
        if not any(value is fit or (type(value) is type(fit) and value == fit) for fit in FITTING[kind])
    ]


def first_shard(manifest: dict[str, Any]) -> dict[str, Any]:
    shard: dict[str, Any] = manifest["shards"][0]
    return shard


def names(record_class: type) -> list[str]:
    return [field.name for field in dataclasses.fields(record_class)]


def test_a_plan_comes_back_as_it_was(tmp_path: Path, make: SimpleNamespace) -> None:
    identity = make.identity(temperatures=(1.0, 0.5, 2.25))
    write_plan(tmp_path, identity)
    assert read_plan(tmp_path) == identity


def test_a_manifest_comes_back_as_it_was(small_cache: Path, tmp_path: Path) -> None:
    manifest = read_manifest(small_cache)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert (tmp_path / "manifest.json").read_bytes() == (small_cache / "manifest.json").read_bytes()


def test_a_manifest_is_the_plan_and_the_commits_joined(small_cache: Path) -> None:
    manifest = read_manifest(small_cache)
    assert manifest.identity == read_plan(small_cache)
    assert [read_commit(small_cache, key) for key in manifest.identity.planned_keys()] == list(manifest.shards)


def test_commit_comes_back_as_it_was_and_is_none_before(tmp_path: Path, small_cache: Path) -> None:
    record = read_manifest(small_cache).shards[1]
    assert read_commit(tmp_path, record.key) is None
    write_commit(tmp_path, record)
    assert read_commit(tmp_path, record.key) == record


def test_the_bytes_of_a_checked_commit_record_are_those_of_its_file(small_cache: Path, forge: SimpleNamespace) -> None:
    record = read_manifest(small_cache).shards[0]
    path = small_cache / record.key.commit_path
    assert check_commit(small_cache, record) == path.read_bytes()
    another_layout = forge.seal(dataclasses.asdict(record))
    assert another_layout != path.read_bytes()
    path.write_bytes(another_layout)
    assert check_commit(small_cache, record) == another_layout


def test_the_largest_plan_has_a_manifest_that_can_be_read(tmp_path: Path, make: SimpleNamespace) -> None:
    """Every field of every record at its longest, apart from numbers that no shard has."""
    most = MAX_RECORD_BYTES // 512
    longest = ShardRecord(
        path=ShardKey(kind="soft_targets", split="validation", index=most - 1, num_shards=most).path,
        first_row_id=10**15,
        num_rows=10**12,
        num_tokens=10**15,
        num_targets=10**15,
        entropy_sum_nats=-1 / 3 * 1e-99,
        label_nll_sum_nats=-1 / 3 * 1e-99,
        shard_bytes=10**15,
        sha256="0" * 64,
    )
    identity = make.identity()
    sizes = []
    for num_shards in (1, 2):
        write_manifest(tmp_path, Manifest(identity=identity, shards=(longest,) * num_shards, files=()))
        sizes.append((tmp_path / "manifest.json").stat().st_size)
    assert (sizes[1] - sizes[0]) * most + sizes[0] <= MAX_RECORD_BYTES
    for num_shards in (most, most + 1):
        write_plan(tmp_path, dataclasses.replace(identity, planned_shards={"soft_targets": {"train": num_shards}}))
        if num_shards == most:
            assert read_plan(tmp_path).planned_shards["soft_targets"]["train"] == most
        else:
            with pytest.raises(RecordError, match="more than 524288 shards"):
                read_plan(tmp_path)


def test_perplexity_and_entropy_are_means_over_targets(small_cache: Path) -> None:
    manifest = read_manifest(small_cache)
    shards = manifest.shards_of("soft_targets", "train")
    num_targets = sum(shard.num_targets for shard in shards)
    mean_entropy = sum(shard.entropy_sum_nats for shard in shards) / num_targets
    mean_nll = sum(shard.label_nll_sum_nats for shard in shards) / num_targets
    assert manifest.teacher_entropy_nats("train") == pytest.approx(mean_entropy)
    assert manifest.teacher_perplexity("train") == pytest.approx(2.718281828459045**mean_nll)
    without = dataclasses.replace(manifest, shards=())
    assert without.teacher_perplexity("train") is None
    assert without.teacher_entropy_nats("train") is None


def test_shards_of_one_split_are_not_those_of_another(small_cache: Path) -> None:
    manifest = read_manifest(small_cache)
    assert [shard.num_rows for shard in manifest.shards_of("soft_targets", "train")] == [8, 7, 5]
    assert [shard.num_rows for shard in manifest.shards_of("beams", "validation")] == [1]
    assert manifest.shards_of("samples", "validation") == ()


@pytest.mark.parametrize("read", [read_plan, read_manifest])
def test_a_missing_record_is_missing(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(MissingFileError):
        read(tmp_path)


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


@pytest.mark.parametrize("file_name", ["plan.json", "manifest.json"])
def test_an_unknown_key_is_named(small_cache: Path, forge: SimpleNamespace, file_name: str) -> None:
    forge.record(small_cache / file_name, lambda content: content.update(surprise=1))
    read = {"plan.json": read_plan, "manifest.json": read_manifest}[file_name]
    with pytest.raises(RecordError, match="surprise"):
        read(small_cache)


@pytest.mark.parametrize("name", names(ShardRecord))
def test_a_missing_shard_key_is_named(small_cache: Path, forge: SimpleNamespace, name: str) -> None:
    forge.record(small_cache / "manifest.json", lambda content: first_shard(content).pop(name))
    with pytest.raises(RecordError, match=name):
        read_manifest(small_cache)


@pytest.mark.parametrize(("name", "value"), wrong_values(ShardRecord))
def test_a_shard_value_of_the_wrong_type_is_named(
    small_cache: Path, forge: SimpleNamespace, name: str, value: object
) -> None:
    forge.record(small_cache / "manifest.json", lambda content: first_shard(content).update({name: value}))
    with pytest.raises(RecordError, match=name):
        read_manifest(small_cache)


@pytest.mark.parametrize("name", names(FileRecord))
def test_a_missing_file_key_is_named(small_cache: Path, forge: SimpleNamespace, name: str) -> None:
    forge.record(small_cache / "manifest.json", lambda content: content["files"][0].pop(name))
    with pytest.raises(RecordError, match=name):
        read_manifest(small_cache)


@pytest.mark.parametrize(("name", "value"), wrong_values(FileRecord))
def test_a_file_value_of_the_wrong_type_is_named(
    small_cache: Path, forge: SimpleNamespace, name: str, value: object
) -> None:
    forge.record(small_cache / "manifest.json", lambda content: content["files"][0].update({name: value}))
    with pytest.raises(RecordError, match=name):
        read_manifest(small_cache)


@pytest.mark.parametrize("where", ["shards", "files"])
def test_an_unknown_key_inside_a_list_is_named(small_cache: Path, forge: SimpleNamespace, where: str) -> None:
    forge.record(small_cache / "manifest.json", lambda content: content[where][0].update(surprise=1))
    with pytest.raises(RecordError, match="surprise"):
        read_manifest(small_cache)


@pytest.mark.parametrize("where", ["shards", "files"])
@pytest.mark.parametrize("value", [None, {}, "x", 1, [1], [None], [[]]])
def test_lists_of_anything_else_are_refused(
    small_cache: Path, forge: SimpleNamespace, where: str, value: object
) -> None:
    forge.record(small_cache / "manifest.json", lambda content: content.update({where: value}))
    with pytest.raises(RecordError, match=where):
        read_manifest(small_cache)


@pytest.mark.parametrize("name", ["first_row_id", "num_rows", "num_tokens", "num_targets", "shard_bytes"])
def test_a_negative_count_is_refused(small_cache: Path, forge: SimpleNamespace, name: str) -> None:
    forge.record(small_cache / "manifest.json", lambda content: first_shard(content).update({name: -1}))
    with pytest.raises(RecordError, match="negative"):
        read_manifest(small_cache)


@pytest.mark.parametrize("sha256", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 64 + "\n", "٠" * 64])
def test_a_malformed_sha256_is_refused(small_cache: Path, forge: SimpleNamespace, sha256: str) -> None:
    forge.record(small_cache / "manifest.json", lambda content: first_shard(content).update(sha256=sha256))
    with pytest.raises(RecordError, match="sha256"):
        read_manifest(small_cache)


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


@pytest.mark.parametrize("version", [2, 7, 10**9])
def test_a_later_version_asks_for_an_upgrade(small_cache: Path, forge: SimpleNamespace, version: int) -> None:
    forge.identity(small_cache, lambda content: content.update(format_version=version, unknown_to_us={}))
    for read in (read_plan, read_manifest):
        with pytest.raises(FormatVersionError, match="upgrade") as caught:
            read(small_cache)
        assert (caught.value.found, caught.value.supported) == (version, 1)


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


@pytest.mark.parametrize(
    "change",
    [
        lambda shards: shards.reverse(),
        lambda shards: shards.insert(1, shards.pop(0)),
        lambda shards: shards.pop(),
        lambda shards: shards.pop(1),
        lambda shards: shards.clear(),
        lambda shards: shards.append(dict(shards[0])),
        lambda shards: shards.insert(0, dict(shards[0])),
        lambda shards: shards.__setitem__(1, dict(shards[0])),
    ],
    ids=["reversed", "swapped", "last missing", "second missing", "none", "appended", "doubled", "replaced"],
)
def test_shards_must_be_the_planned_ones_in_order(
    small_cache: Path, forge: SimpleNamespace, change: Callable[[list[Any]], object]
) -> None:
    forge.record(small_cache / "manifest.json", lambda content: change(content["shards"]))
    with pytest.raises(RecordError, match="planned"):
        read_manifest(small_cache)


@pytest.mark.parametrize("first_row_id", [0, 3, 7])
def test_overlapping_rows_are_refused(small_cache: Path, forge: SimpleNamespace, first_row_id: int) -> None:
    forge.shard_record(small_cache, SHARD, first_row_id=first_row_id)
    with pytest.raises(RecordError, match="overlap"):
        read_manifest(small_cache)


@pytest.mark.parametrize("path", ["soft_targets/train-00000-of-00003.arrow", SHARD])
def test_row_ids_that_skip_some_are_refused(small_cache: Path, forge: SimpleNamespace, path: str) -> None:
    later = [shard.first_row_id + 1 for shard in read_manifest(small_cache).shards if shard.path == path]
    forge.shard_record(small_cache, path, first_row_id=later[0], num_rows=1)
    with pytest.raises(RecordError):
        read_manifest(small_cache)


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


def test_a_commit_that_speaks_of_another_shard_is_refused(small_cache: Path) -> None:
    first, second = read_manifest(small_cache).shards[:2]
    (small_cache / first.key.commit_path).write_bytes((small_cache / second.key.commit_path).read_bytes())
    with pytest.raises(RecordError, match="speaks of"):
        read_commit(small_cache, first.key)


def test_planned_keys_are_ordered_by_kind_split_and_index(make: SimpleNamespace) -> None:
    keys = make.identity(planned_shards={"beams": {"validation": 1, "train": 2}, "soft_targets": {"train": 1}})
    assert [key.path for key in keys.planned_keys()] == [
        "soft_targets/train-00000-of-00001.arrow",
        "beams/train-00000-of-00002.arrow",
        "beams/train-00001-of-00002.arrow",
        "beams/validation-00000-of-00001.arrow",
    ]
