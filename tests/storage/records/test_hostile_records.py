"""Records with the right checksum and the wrong content: whoever reads them meets our errors and no others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from storage import open_cache, verify_cache
from storage.errors import HashMismatchError, MissingFileError, TeachonceError, UnlistedFileError, UnsafePathError
from storage.reading.inspection import render_summary, summarize
from storage.reading.row_stream import RowStream

LAST_SHARD = "soft_targets/train-00002-of-00003.arrow"
SAMPLES = tuple(f"samples/train-0000{index}-of-00002.arrow" for index in range(2))

Forgery = Callable[[Path, SimpleNamespace], object]


def identity(**changes: object) -> Forgery:
    return lambda cache_dir, forge: forge.identity(cache_dir, lambda content: content.update(changes))


def inside(name: str, **changes: object) -> Forgery:
    return lambda cache_dir, forge: forge.identity(cache_dir, lambda content: content[name].update(changes))


def last_shard(**changes: object) -> Forgery:
    return lambda cache_dir, forge: forge.shard_record(cache_dir, LAST_SHARD, **changes)


def first_file(**changes: object) -> Forgery:
    return lambda cache_dir, forge: forge.record(
        cache_dir / "manifest.json", lambda content: content["files"][0].update(changes)
    )


def samples_without_tokens(cache_dir: Path, forge: SimpleNamespace) -> None:
    for path in SAMPLES:
        forge.shard_record(cache_dir, path, num_tokens=0)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def replaced_by_a_directory(name: str) -> Forgery:
    def forgery(cache_dir: Path, forge: SimpleNamespace) -> None:
        (cache_dir / name).unlink()
        (cache_dir / name).mkdir()

    return forgery


HOSTILE: dict[str, Forgery] = {
    "block size beyond int32": identity(block_size=2**31 - 1),
    "block size beyond int64": identity(block_size=2**70),
    "record batch rows beyond int64": identity(record_batch_rows=2**70),
    "another vocabulary": identity(vocab_size=2),
    "another token type": identity(vocab_size=100_000),
    "temperature beyond float": identity(temperatures=[10**400]),
    "temperature of nothing": identity(temperatures=[1.0, 5e-324]),
    "temperature twice": identity(temperatures=[1.0, 2.0, 2.0]),
    "temperatures alike in six digits": identity(temperatures=[1.0, 2.0, 2.0000001]),
    "teacher unknown": identity(teacher={}),
    "data unknown": identity(data={}),
    "tokenizer unknown": identity(tokenizer={}),
    "teacher of another type": inside("teacher", id=[], num_parameters="many", architecture=None),
    "teacher with a lone surrogate": inside("teacher", id="\ud800"),
    "teacher nested deeply": inside("teacher", nested=nested(700)),
    "rows beyond int64": last_shard(num_rows=2**70),
    "rows beyond float": last_shard(num_rows=10**400),
    "first row beyond float": last_shard(first_row_id=10**400),
    "bytes beyond float": last_shard(shard_bytes=10**400),
    "tokens beyond float": last_shard(num_tokens=10**400),
    "targets beyond float": last_shard(num_targets=10**400),
    "entropy beyond float": last_shard(entropy_sum_nats=10**400),
    "loss beyond float": last_shard(label_nll_sum_nats=10**400),
    "loss whose exponential overflows": last_shard(label_nll_sum_nats=1e308),
    "loss negative": last_shard(label_nll_sum_nats=-1e308),
    "no rows": last_shard(num_rows=0),
    "no tokens": samples_without_tokens,
    "file of negative size": first_file(file_bytes=-1),
    "file beyond float": first_file(file_bytes=10**400),
    "file with a malformed sha256": first_file(sha256="no"),
    "file with a very long name": first_file(path="a" * 300),
    "file below a file": first_file(path="README.md/README.md"),
    "file is a directory": first_file(path="soft_targets"),
    "plan is a directory": replaced_by_a_directory("plan.json"),
    "commit is a directory": replaced_by_a_directory("commits/samples-train-00001.json"),
    "shard is a directory": replaced_by_a_directory(LAST_SHARD),
    "file replaced by a directory": replaced_by_a_directory("README.md"),
}


def print_summary(cache_dir: Path) -> None:
    summary = summarize(open_cache(cache_dir))
    render_summary(summary).encode()
    json.dumps(summary, indent=1, sort_keys=True).encode()


def read_an_epoch(cache_dir: Path) -> None:
    batches = RowStream(open_cache(cache_dir), "soft_targets", "train", batch_rows=20, seed=0).batches()
    next(batches)


def errors_of(read: Callable[[Path], Any], cache_dir: Path) -> tuple[Exception, ...]:
    """Our errors, raised or returned; any other exception passes through."""
    try:
        return tuple(getattr(read(cache_dir), "problems", ()))
    except TeachonceError as error:
        return (error,)


@pytest.mark.parametrize("read", [open_cache, verify_cache, print_summary, read_an_epoch])
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_record_raises_nothing_but_our_errors(
    small_cache: Path, forge: SimpleNamespace, case: str, read: Callable[[Path], Any]
) -> None:
    HOSTILE[case](small_cache, forge)
    errors = errors_of(read, small_cache)
    assert all(isinstance(error, TeachonceError) and "\n" not in str(error) for error in errors)


HARMLESS_TO_VERIFY = {
    "teacher unknown",
    "data unknown",
    "tokenizer unknown",
    "teacher of another type",
    "teacher with a lone surrogate",
    "teacher nested deeply",
}


@pytest.mark.parametrize("case", [case for case in HOSTILE if case not in HARMLESS_TO_VERIFY])
def test_a_hostile_record_is_found_by_verification(small_cache: Path, forge: SimpleNamespace, case: str) -> None:
    HOSTILE[case](small_cache, forge)
    assert errors_of(verify_cache, small_cache)


def test_more_rows_than_a_shard_can_hold_are_refused_without_counting_them(
    small_cache: Path, forge: SimpleNamespace, run_python: Callable[..., Any]
) -> None:
    forge.shard_record(small_cache, LAST_SHARD, num_rows=10**12)
    code = (
        "import sys, storage\n"
        "stream = storage.RowStream(storage.open_cache(sys.argv[1]), 'soft_targets', 'train', batch_rows=4, seed=0)\n"
        "next(stream.batches())"
    )
    assert "storage.errors." in run_python(code, small_cache).stderr


@pytest.mark.parametrize(
    "path",
    [
        "",
        "..",
        "/etc/hosts",
        "../cache/README.md",
        "x/../README.md",
        "./README.md",
        "a\\b",
        "C:x",
        "README.md\0",
        "\ud800",
    ],
    ids=repr,
)
def test_a_file_outside_the_cache_is_never_opened(small_cache: Path, forge: SimpleNamespace, path: str) -> None:
    first_file(path=path)(small_cache, forge)
    problem, unlisted = verify_cache(small_cache).problems
    assert isinstance(problem, UnsafePathError)
    assert problem.path == path
    assert isinstance(unlisted, UnlistedFileError)
    assert unlisted.path == str(small_cache / "README.md")


@pytest.mark.parametrize("name", ["soft_targets", "README.md", LAST_SHARD])
def test_a_symbolic_link_is_followed_to_the_recorded_bytes_alone(small_cache: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    (small_cache / name).rename(elsewhere)
    (small_cache / name).symlink_to(elsewhere)
    assert verify_cache(small_cache).problems == ()
    read_an_epoch(small_cache)
    for file in elsewhere.iterdir() if elsewhere.is_dir() else [elsewhere]:
        file.write_bytes(file.read_bytes()[::-1])
    problems = verify_cache(small_cache).problems
    assert problems
    assert all(isinstance(problem, HashMismatchError) for problem in problems)
    if name != "README.md":
        with pytest.raises(HashMismatchError):
            read_an_epoch(small_cache)


def test_a_cache_reached_through_a_link_is_served(small_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(small_cache)
    assert verify_cache(tmp_path / "link").problems == ()


def test_a_missing_and_a_changed_file_are_told_apart(small_cache: Path) -> None:
    readme = small_cache / "README.md"
    content = readme.read_bytes()
    readme.write_bytes(content[:-1])
    assert [type(problem) for problem in verify_cache(small_cache).problems] == [HashMismatchError]
    readme.write_bytes(b"x" + content[1:])
    assert [type(problem) for problem in verify_cache(small_cache).problems] == [HashMismatchError]
    readme.unlink()
    assert [type(problem) for problem in verify_cache(small_cache).problems] == [MissingFileError]


@pytest.mark.parametrize("name", ["teacher_perplexity", "teacher_entropy_nats"])
def test_a_summary_that_the_shards_belie_is_found(small_cache: Path, forge: SimpleNamespace, name: str) -> None:
    forge.record(small_cache / "manifest.json", lambda content: content[name].update(train=1.0))
    assert errors_of(verify_cache, small_cache)
