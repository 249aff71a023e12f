"""Read records at a URL (plan, manifest, commit records) as strictly as those on a disk."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from storage.disk.files import refusals
from storage.errors import CacheError, ConfigError, NoCacheError, RecordError, UnfinishedRemoteError, first_line
from storage.records.identity import PLAN_NAME
from storage.records.manifest import CARD_NAME, MANIFEST_NAME, Manifest, read_manifest
from storage.records.records import MAX_RECORD_BYTES
from storage.remote.directory import RemoteDirectory

Parsed = TypeVar("Parsed")


def read_remote(remote: RemoteDirectory, name: str, read: Callable[[Path], Parsed]) -> tuple[Parsed, bytes] | None:
    """Return a remote record, parsed by `read`, and its bytes; None when there is no such record.

    `read` receives a local directory with a copy of the record. Fetch a record again if `read` raises RecordError. If
    the same bytes come again, the network did not damage them: raise the error of `read`. Raise WriteRefusedError when
    the local copy cannot be written.
    """
    unreadable: set[bytes] = set()
    with refusals(Path(tempfile.gettempdir())):
        directory = tempfile.TemporaryDirectory()

    def attempt(staging: str) -> tuple[Parsed, bytes] | None:
        content = remote.read_small(name, MAX_RECORD_BYTES)
        if content is None:
            return None
        copy = Path(staging, name)
        with refusals(copy):  # a full disk on this machine must not be retried as a network error
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
        try:
            return read(Path(staging)), content
        except CacheError as error:
            _say_where(error, staging, remote.url)
            if isinstance(error, RecordError) and content not in unreadable:
                unreadable.add(content)
                raise OSError(first_line(error)) from error
            raise

    with directory as staging:
        return remote.retrying(name, lambda: attempt(staging))


def read_remote_manifest(remote: RemoteDirectory) -> tuple[Manifest, bytes]:
    """Return the manifest of a finished cache, and its bytes.

    Raise UnfinishedRemoteError when there is only a plan, NoCacheError when there is neither.
    """
    found = read_remote(remote, MANIFEST_NAME, read_manifest)
    if found is not None:
        return found
    raise UnfinishedRemoteError(remote.url) if _holds(remote, PLAN_NAME) else NoCacheError(remote.url)


def require_no_foreign_card(remote: RemoteDirectory) -> None:
    """Raise ConfigError when a README.md is there and no cache was begun: the cache's card would replace it."""
    is_cache = _holds(remote, PLAN_NAME) or _holds(remote, MANIFEST_NAME)
    if not is_cache and _holds(remote, CARD_NAME):
        raise ConfigError(f"{remote.url}: holds a {CARD_NAME} and no cache; name another place, or take it away")


def _holds(remote: RemoteDirectory, name: str) -> bool:
    return remote.num_bytes(name) is not None


def _say_where(error: CacheError, staging: str, url: str) -> None:
    """Replace the path of the staging directory by the URL in an error's message and attributes."""
    error.args = (str(error).replace(staging, url),)
    texts = {name: value.replace(staging, url) for name, value in vars(error).items() if isinstance(value, str)}
    vars(error).update(texts)
