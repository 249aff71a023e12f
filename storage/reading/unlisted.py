"""Find what stands in the directory of a finished cache and is no part of it, such as a copy of a shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

from storage.disk.files import TEMPORARY_PREFIX
from storage.records.identity import PLAN_NAME
from storage.records.manifest import MANIFEST_NAME, TOKENIZER_DIR, Manifest

_SUFFIX_OF_DVC = ".dvc"


def unlisted_files(manifest: Manifest, names_in: Callable[[str], list[str]]) -> Iterator[str]:
    """Yield the path of each file or directory that the manifest does not account for, sorted by directory and name.

    names_in: returns the names in one of the cache's directories, "." for its own. Look only into directories of listed
    files. Leave out what may_stay allows.
    """
    listed = {MANIFEST_NAME, PLAN_NAME, *(file.path for file in manifest.files)}
    for shard in manifest.shards:
        listed |= {shard.path, shard.key.commit_path}
    directories = {str(parent) for path in listed for parent in PurePosixPath(path).parents}
    for directory in sorted(directories):
        for name in sorted(names_in(directory)):
            path = str(PurePosixPath(directory, name))
            if path not in listed and path not in directories and not may_stay(path):
                yield path


def may_stay(path: str) -> bool:
    """Return whether a file of a cache that the manifest does not list may stay there: no reader takes it for rows.

    These are names that begin with a dot, which other tools use and a writer's leftovers have, and DVC's `*.dvc`. The
    hash of the tokenizer is over all files in its directory but a writer's leftovers, so only those may stay there.
    """
    directory, _, name = path.rpartition("/")
    if directory == TOKENIZER_DIR:
        return name.startswith(TEMPORARY_PREFIX)
    return name.startswith(".") or name.endswith(_SUFFIX_OF_DVC)
