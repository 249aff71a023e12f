"""Find what stands in the directory of a finished cache and is no part of it, such as a copy of a shard."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from storage.disk.files import TEMPORARY_PREFIX
from storage.disk.safe_paths import safe_join_to_read
from storage.errors import CacheError, UnlistedFileError
from storage.records.identity import PLAN_NAME
from storage.records.manifest import MANIFEST_NAME, TOKENIZER_DIR, Manifest

_SUFFIX_OF_DVC = ".dvc"


def unlisted_files(cache_dir: Path, manifest: Manifest) -> Iterator[UnlistedFileError]:
    """Yield an UnlistedFileError for each file or directory that the manifest does not account for, by path.

    Look only into directories of listed files. Leave out what may_stay allows.
    """
    listed = {MANIFEST_NAME, PLAN_NAME, *(file.path for file in manifest.files)}
    for shard in manifest.shards:
        listed |= {shard.path, shard.key.commit_path}
    directories = {str(parent) for path in listed for parent in PurePosixPath(path).parents}
    for directory in sorted(directories):
        for name in _names_in(cache_dir, directory):
            path = str(PurePosixPath(directory, name))
            if path not in listed and path not in directories and not may_stay(path):
                yield UnlistedFileError(str(cache_dir / path))


def may_stay(path: str) -> bool:
    """Return whether a file of a cache that the manifest does not list may stay there: no reader takes it for rows.

    These are names that begin with a dot, which other tools use and a writer's leftovers have, and DVC's `*.dvc`. The
    hash of the tokenizer is over all files in its directory but a writer's leftovers, so only those may stay there.
    """
    directory, _, name = path.rpartition("/")
    if directory == TOKENIZER_DIR:
        return name.startswith(TEMPORARY_PREFIX)
    return name.startswith(".") or name.endswith(_SUFFIX_OF_DVC)


def _names_in(cache_dir: Path, directory: str) -> list[str]:
    """Return the names in a directory; none when it cannot be listed, which is also said of its listed files."""
    try:
        where = cache_dir if directory == "." else safe_join_to_read(cache_dir, directory, str(cache_dir))
        return sorted(os.listdir(where)) if where.is_dir() else []
    except (CacheError, OSError):
        return []
