"""Links, pipes, sockets and devices in the place of files."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.errors import IncompleteCacheError, MissingFileError, RecordError, UnsafePathError
from tests.storage.reading.forging import FIRST, bind_socket, link, special
from tests.storage.reading.readers import FILES, ROWS, Case, cases

SOFT = FIRST["soft_targets"]


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
