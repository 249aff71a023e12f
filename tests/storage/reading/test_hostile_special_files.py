"""Links, pipes, sockets and devices in the place of files."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.errors import HashMismatchError, IncompleteCacheError, LinkTargetError, MissingFileError, RecordError
from tests.storage.reading.forging import FIRST, LAST_BLOCKS, bind_socket, link, outside, special
from tests.storage.reading.readers import FILES, ROWS, Case, cases

SOFT = FIRST["soft_targets"]


def pipe(cache_dir: Path) -> Path:
    os.mkfifo(outside(cache_dir) / "pipe")
    return outside(cache_dir) / "pipe"


def empty_file(cache_dir: Path) -> Path:
    (outside(cache_dir) / "empty").touch()
    return outside(cache_dir) / "empty"


NOT_FILES = (
    cases(
        LinkTargetError,
        {
            "shard is a link to itself": link(SOFT, lambda cache_dir: cache_dir / SOFT),
            "shard is a link to nothing": link(SOFT, lambda cache_dir: outside(cache_dir) / "nothing"),
            "shard is a link to a device": link(SOFT, lambda _: Path("/dev/zero")),
            "shard is a link to a pipe": link(SOFT, pipe),
            "shard is a link to an empty file": link(SOFT, empty_file),
            "directory of shards is a link to nothing": link("soft_targets", lambda _: Path("nothing")),
            "directory of shards is a link to a device": link("soft_targets", lambda _: Path("/dev/zero")),
        },
        ROWS,
    )
    | cases(
        LinkTargetError,
        {
            "manifest is a link to a device": link("manifest.json", lambda _: Path("/dev/zero")),
            "manifest is a link to a pipe": link("manifest.json", pipe),
            "manifest is a link to nothing": link("manifest.json", lambda _: Path("nothing")),
        },
    )
    | cases(
        LinkTargetError,
        {
            "plan is a link to a device": link("plan.json", lambda _: Path("/dev/zero")),
            "commit is a link to a pipe": link("commits/samples-train-00000.json", pipe),
            "directory of commits is a link to itself": link("commits", lambda cache_dir: cache_dir / "commits"),
        },
        ("verify",),
    )
    | cases(
        LinkTargetError,
        {
            "tokenizer's file is a link to a device": link("tokenizer/tokenizer.json", lambda _: Path("/dev/zero")),
            "directory of the tokenizer is a link to nothing": link("tokenizer", lambda _: Path("nothing")),
            "README is a link to a pipe": link("README.md", pipe),
        },
        FILES,
    )
    | cases(
        MissingFileError,
        {
            "directory of shards is a link to a file": link("soft_targets", lambda c: outside(c) / "secret"),
            "directory of shards is a link to another": link("soft_targets", lambda c: c / "samples"),
            "shard is a link to a directory": link(SOFT, lambda c: c / "samples"),
        },
        ROWS,
    )
    | cases(
        HashMismatchError,
        {
            "shard is a link to another file": link(SOFT, lambda cache_dir: outside(cache_dir) / "secret"),
            "shard is a link to another shard": link(SOFT, lambda cache_dir: cache_dir / LAST_BLOCKS),
        },
        ROWS,
    )
    | cases(
        MissingFileError,
        {
            "shard is a pipe": special(SOFT, os.mkfifo),
            "shard is a socket": special(SOFT, bind_socket),
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


@pytest.mark.parametrize("name", NOT_FILES)
def test_a_hostile_cache_is_refused(require_refused: Callable[[Case], None], name: str) -> None:
    require_refused(NOT_FILES[name])
