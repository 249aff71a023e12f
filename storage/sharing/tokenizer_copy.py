"""Copy the tokenizer of a finished cache into a cache that is made from it."""

from __future__ import annotations

from pathlib import Path

from storage.disk.files import write_unless_equal
from storage.disk.safe_paths import safe_join
from storage.reading.cache import TOKENIZER_DIR, Cache
from storage.shards.shard import check_file


def copy_tokenizer(cache: Cache, out: Path) -> list[str]:
    """Check the files of `cache` that are not shards; copy the tokenizer's files to `out`; return their paths.

    The paths are relative to the cache. Raise MissingFileError, UnreadableFileError, HashMismatchError, UnsafePathError
    or WriteRefusedError.
    """
    names = []
    for file in cache.manifest.files:
        source = check_file(cache.path, file)
        if file.path.startswith(f"{TOKENIZER_DIR}/"):
            write_unless_equal(safe_join(out, file.path, str(out)), source.read_bytes())
            names.append(file.path)
    return names
