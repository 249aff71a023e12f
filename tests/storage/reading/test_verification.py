from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage import open_cache, verify_cache
from storage.errors import CacheError, HashMismatchError, MissingFileError, RecordError, RowError, UnreadableFileError
from storage.reading.cache import Cache
from storage.reading.verification import check_records
from storage.shards import shard as shard_module

Verify = Callable[[Path], tuple[CacheError, ...]]

COMMIT = "commits/soft_targets-train-00001.json"


@pytest.mark.parametrize("fixture", ["cache", "bucketed_cache"])
def test_a_finished_cache_is_whole(request: pytest.FixtureRequest, fixture: str) -> None:
    cache: Cache = request.getfixturevalue(fixture)
    found = verify_cache(cache.path)
    assert found.problems == ()
    assert found.num_shards == len(cache.manifest.shards) == 10
    assert found.num_rows == sum(shard.num_rows for shard in cache.manifest.shards)
    assert found.num_bytes == sum((cache.path / shard.path).stat().st_size for shard in cache.manifest.shards)


def test_progress_adds_up_to_every_listed_byte(small_cache: Path) -> None:
    told: list[int] = []
    verify_cache(small_cache, told.append)
    manifest = open_cache(small_cache).manifest
    listed = [*manifest.files, *manifest.shards]
    assert sum(told) == sum((small_cache / item.path).stat().st_size for item in listed)
    assert len(told) == len(listed)


def test_records_are_checked_without_a_shard(small_cache: Path, forge: SimpleNamespace) -> None:
    for shard in small_cache.rglob("*.arrow"):
        shard.unlink()
    cache = open_cache(small_cache)
    assert check_records(cache) == []
    (small_cache / "plan.json").unlink()
    forge.record(small_cache / COMMIT, lambda record: record.update(num_tokens=1))
    (plan, commit) = check_records(cache)
    assert isinstance(plan, MissingFileError)
    assert isinstance(commit, RecordError)
    assert COMMIT in str(commit)


def test_a_shard_that_may_not_be_read_is_one_problem_of_several(
    small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, flipped = (small_cache / record.path for record in open_cache(small_cache).manifest.shards[:2])
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"!")
    original = shard_module.sha256_file

    def sha256_file(path: Path) -> str:
        if path == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(shard_module, "sha256_file", sha256_file)
    unreadable, damaged = verify_cache(small_cache).problems
    assert isinstance(unreadable, UnreadableFileError)
    assert str(unreadable).startswith(f"{closed}: cannot be read (Permission denied)")
    assert isinstance(damaged, HashMismatchError)


@pytest.mark.parametrize("name", ["plan.json", COMMIT])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "flipped", "other content", "later version"])
def test_a_damaged_plan_or_commit_is_named(
    small_cache: Path, forge: SimpleNamespace, verify_alike: Verify, name: str, damage: str
) -> None:
    path = small_cache / name
    content = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
        case "truncated":
            path.write_bytes(content[:-30])
        case "empty":
            path.write_bytes(b"")
        case "flipped":
            path.write_bytes(content.replace(b"e", b"a", 1))
        case "other content" if name == COMMIT:
            forge.record(path, lambda record: record.update(num_tokens=1))
        case "other content":
            forge.record(path, lambda record: record["teacher"].update(id="another"))
        case "later version" if name == COMMIT:
            forge.record(path, lambda record: record.update(format_version=4))
        case _:
            forge.record(path, lambda record: record.update(format_version=4))
    (problem,) = verify_alike(small_cache)
    assert str(path) in str(problem)


def test_a_flipped_bit_anywhere_in_a_record_is_found(tmp_path: Path, make: SimpleNamespace) -> None:
    cache_dir = make.cache(tmp_path / "cache", {"soft_targets": {"train": [1, 1]}})
    for name in ("plan.json", COMMIT):
        pristine = (cache_dir / name).read_bytes()
        meaning = json.loads(pristine)
        for position in range(0, len(pristine), 23):
            damaged = bytearray(pristine)
            damaged[position] ^= 2
            (cache_dir / name).write_bytes(damaged)
            found = verify_cache(cache_dir).problems
            assert found or json.loads(damaged) == meaning, (name, position)
        (cache_dir / name).write_bytes(pristine)


def test_every_problem_is_told_and_verification_goes_on(
    small_cache: Path, forge: SimpleNamespace, verify_alike: Verify
) -> None:
    (small_cache / "README.md").unlink()
    (small_cache / "samples" / "train-00001-of-00002.arrow").unlink()
    shard = small_cache / "soft_targets" / "train-00000-of-00003.arrow"
    shard.write_bytes(shard.read_bytes()[:-1])
    (small_cache / COMMIT).unlink()
    forge.shard_record(small_cache, "beams/train-00000-of-00001.arrow", num_targets=1)
    problems = verify_alike(small_cache)
    assert {type(problem) for problem in problems} == {
        MissingFileError,
        HashMismatchError,
        RecordError,
        RowError,
    }
    assert len(problems) == 5
    assert verify_cache(small_cache).num_shards == 8


def test_verification_changes_nothing(small_cache: Path) -> None:
    before = {path: path.read_bytes() for path in small_cache.rglob("*") if path.is_file()}
    verify_cache(small_cache)
    assert {path: path.read_bytes() for path in small_cache.rglob("*") if path.is_file()} == before
