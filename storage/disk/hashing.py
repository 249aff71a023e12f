"""Hashes of files and directories. hashlib.file_digest is not used: it needs Python 3.11, and 3.10 is supported."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from storage.disk.files import TEMPORARY_PREFIX

_READ_BYTES = 1 << 18


def directory_sha256(directory: Path) -> str:
    """Return the hex sha256 over the lines `NAME SHA256` of a directory's files, sorted by name.

    Leave out temporary files of writers. The directory may hold only files.
    """
    return files_sha256(path for path in directory.iterdir() if not path.name.startswith(TEMPORARY_PREFIX))


def files_sha256(paths: Iterable[Path]) -> str:
    """Return the hex sha256 over the lines `NAME SHA256` of files of one directory, sorted by name."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of a file's bytes; read them in pieces, into the same memory, which stays in the cache."""
    digest = hashlib.sha256()
    piece = memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while num_bytes := file.readinto(piece):
            digest.update(piece[:num_bytes])
    return digest.hexdigest()
