"""Write the last files of a cache, its dataset card and manifest.json, for every kind of destination."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from storage.disk.files import write_file
from storage.disk.hashing import sha256_file
from storage.disk.safe_paths import safe_join
from storage.errors import CacheError
from storage.records.dataset_card import dataset_card
from storage.records.identity import CacheIdentity, FileRecord, ShardRecord
from storage.records.manifest import CARD_NAME, Manifest, read_manifest, write_manifest
from storage.shards.shard import check_file


def read_finished(directory: Path, identity: CacheIdentity, records: Sequence[ShardRecord]) -> Manifest | None:
    """Return the manifest in `directory` if it states this identity and these shards, and its other files are whole.

    None otherwise. A writer leaves such a cache as it is: another version may have written the card.
    """
    try:
        manifest = read_manifest(directory)
        for file in manifest.files:
            check_file(directory, file)
    except CacheError:
        return None
    return manifest if (manifest.identity, manifest.shards) == (identity, tuple(records)) else None


def write_card_and_manifest(
    directory: Path, identity: CacheIdentity, records: Sequence[ShardRecord], tokenizer_files: Sequence[str]
) -> Manifest:
    """Write README.md and manifest.json into `directory`, which holds the tokenizer's files; return the manifest.

    records: the shards, in order. tokenizer_files: paths in the cache. Raise WriteRefusedError when a write fails,
    LinkInTheWayError when one of the two is a symbolic link.
    """
    write_file(safe_join(directory, CARD_NAME, str(directory)), dataset_card(identity, tuple(records)).encode())
    files = tuple(file_record(directory, name) for name in [CARD_NAME, *sorted(tokenizer_files)])
    manifest = Manifest(identity=identity, shards=tuple(records), files=files)
    write_manifest(directory, manifest)
    return manifest


def file_record(directory: Path, name: str) -> FileRecord:
    """Return the manifest's record of the file `name` in `directory`: its size in bytes and sha256."""
    path = directory / name
    return FileRecord(path=name, file_bytes=path.stat().st_size, sha256=sha256_file(path))
