from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage.errors import RecordError
from storage.records.commits import check_commit, read_commit, read_plan, write_commit, write_plan
from storage.records.manifest import read_manifest


def test_a_plan_comes_back_as_it_was(tmp_path: Path, make: SimpleNamespace) -> None:
    identity = make.identity(temperatures=(1.0, 0.5, 2.25))
    write_plan(tmp_path, identity)
    assert read_plan(tmp_path) == identity


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


def test_a_commit_that_speaks_of_another_shard_is_refused(small_cache: Path) -> None:
    first, second = read_manifest(small_cache).shards[:2]
    (small_cache / first.key.commit_path).write_bytes((small_cache / second.key.commit_path).read_bytes())
    with pytest.raises(RecordError, match="speaks of"):
        read_commit(small_cache, first.key)
