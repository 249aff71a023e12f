"""Copy the tokenizer of a finished cache into a cache that is made from it."""

from __future__ import annotations

from storage.reading.cache import Cache
from storage.records.manifest import TOKENIZER_DIR
from storage.shards.shard import check_file
from storage.writing.directory_destination import DirectoryDestination


def copy_tokenizer(cache: Cache, destination: DirectoryDestination) -> list[str]:
    """Check the files of `cache` that are not shards; copy the tokenizer's files; return their paths.

    The paths are relative to the cache. Raise the errors of check_file and of DirectoryDestination.add_file.
    """
    names = []
    for file in cache.manifest.files:
        source = check_file(cache.path, file)
        if file.path.startswith(f"{TOKENIZER_DIR}/"):
            destination.add_file(file.path, source.read_bytes())
            names.append(file.path)
    return names
