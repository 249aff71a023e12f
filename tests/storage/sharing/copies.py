"""Copies at a URL: what the tests of push and pull put there, look at and damage."""

from __future__ import annotations

import threading
from pathlib import Path

from fsspec.implementations.memory import MemoryFileSystem

from storage.remote.retrying import RetryPolicy
from storage.sharing.transfer import push

QUICK = RetryPolicy(deadline_s=20, first_wait_s=0.001, longest_wait_s=0.01)
IMPATIENT = RetryPolicy(deadline_s=0.05, first_wait_s=0.001, longest_wait_s=0.01)
ROWS = {"soft_targets": {"train": [4, 3, 5]}, "samples": {"train": [2]}}
SHARD = "soft_targets/train-00001-of-00003.arrow"
COMMIT = "commits/soft_targets-train-00001.json"
NUM_SHARDS, NUM_FILES = 4, 4 * 2 + 3  # shards with their records; plan, card, manifest


def remote_files() -> dict[str, bytes]:
    return {path.partition("/cache/")[2]: file.getvalue() for path, file in MemoryFileSystem.store.items()}


def damage(path: str) -> None:
    content = bytearray(remote_files()[path])
    content[len(content) // 2] ^= 1
    MemoryFileSystem().pipe_file(f"/bucket/cache/{path}", bytes(content))


def push_at_once(directories: list[Path], url: str) -> list[BaseException]:
    """Push every directory to the same place, each from a thread of its own; what any of them raised."""
    barrier, failures = threading.Barrier(len(directories)), []

    def race(directory: Path) -> None:
        barrier.wait()
        try:
            push(directory, url, policy=QUICK)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=race, args=(directory,)) for directory in directories]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures
