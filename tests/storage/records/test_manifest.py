from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from storage.errors import MissingFileError, RecordError
from storage.records.commits import read_commit, read_plan, write_plan
from storage.records.identity import FileRecord, ShardKey, ShardRecord
from storage.records.manifest import Manifest, read_manifest, write_manifest
from storage.records.records import MAX_RECORD_BYTES
from tests.storage.records.record_fields import first_shard, names, wrong_values

SHARD = "soft_targets/train-00001-of-00003.arrow"


def test_a_manifest_comes_back_as_it_was(small_cache: Path, tmp_path: Path) -> None:
    manifest = read_manifest(small_cache)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert (tmp_path / "manifest.json").read_bytes() == (small_cache / "manifest.json").read_bytes()


def test_a_manifest_is_the_plan_and_the_commits_joined(small_cache: Path) -> None:
    manifest = read_manifest(small_cache)
    assert manifest.identity == read_plan(small_cache)
    assert [read_commit(small_cache, key) for key in manifest.identity.planned_keys()] == list(manifest.shards)


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
