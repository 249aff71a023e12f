"""Copy a finished cache to a URL and back. Copies resume and are retried; manifest.json follows when all is verified.

The order is that of a writer on disk: plan.json, then each shard before its commit record, the other files, and
manifest.json last. So every directory with a manifest.json is complete. The remote side is not trusted: no listing is
requested, sizes and hashes come from the manifest, and every byte of a copied file is hashed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from storage.disk.directories import remove_leftovers
from storage.disk.directory_lock import only_writer
from storage.disk.files import TEMPORARY_PREFIX, write_file
from storage.disk.safe_paths import safe_join
from storage.errors import CacheMismatchError, ConfigError
from storage.reading.cache import open_cache
from storage.reading.verification import check_records
from storage.records.commits import check_commit, check_plan, is_held, read_plan, write_commit, write_plan
from storage.records.identity import PLAN_NAME, CacheIdentity, FileRecord, ShardRecord
from storage.records.manifest import MANIFEST_NAME, Manifest, check_listed_files, read_manifest
from storage.remote.crew import Crew
from storage.remote.directory import ProgressHook, RemoteDirectory
from storage.remote.remote_records import read_remote, read_remote_manifest, require_no_foreign_card
from storage.remote.retrying import DEFAULT_POLICY, RetryPolicy
from storage.remote.sending import Sender, Unit, as_file
from storage.shards.shard import ensure_file

NUM_CONNECTIONS = 4

Parsed = TypeVar("Parsed", CacheIdentity, Manifest)


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """The result of a push or a pull. Kept files were at the destination already."""

    num_shards: int
    num_copied_files: int
    num_kept_files: int
    num_copied_bytes: int


def push(
    cache_dir: Path,
    url: str,
    *,
    num_connections: int = NUM_CONNECTIONS,
    policy: RetryPolicy = DEFAULT_POLICY,
    progress: ProgressHook = lambda num_bytes: None,
) -> Transfer:
    """Copy a finished cache to a URL that fsspec writes, or to hf://datasets/OWNER/NAME[@REVISION][/PATH].

    Files that are at the URL are not sent again: a shard is recognised by its size and commit record, any other file by
    its content. Then every byte is read back, files that differ are sent again, and manifest.json is put. `progress`
    receives the bytes of each shard and listed file twice: once it is at the URL, and once it has been read back.

    Raise NoCacheError, IncompleteCacheError, RecordError, MissingFileError or HashMismatchError for the local cache;
    CacheMismatchError when another cache is at the URL; ConfigError for a URL that cannot be served or that holds a
    README.md and no cache; TransferError when an error is final or a file's deadline has passed.
    """
    manifest = open_cache(cache_dir).manifest
    crew = Crew(num_connections, progress)
    sender = Sender(cache_dir, RemoteDirectory(url, policy, sleep=crew.sleep), crew)
    plan, last = (Unit(files=(as_file(name, (cache_dir / name).read_bytes()),)) for name in (PLAN_NAME, MANIFEST_NAME))
    units = _units(cache_dir, manifest)
    _refuse_another_cache(sender.remote, manifest)
    require_no_foreign_card(sender.remote)
    sender.send([plan])  # from now on, another push sees which cache is here
    _refuse_another_cache(sender.remote, manifest)
    sender.send(units)
    sender.prove(units)
    _refuse_another_cache(sender.remote, manifest)
    sender.send([last])
    sender.prove([last])
    sent = sender.sent
    return Transfer(
        num_shards=len(manifest.shards),
        num_copied_files=len(sent),
        num_kept_files=sum(len(unit.files) for unit in [plan, *units, last]) - len(sent),
        num_copied_bytes=sum(file.num_bytes for file in sent),
    )


def pull(
    url: str,
    cache_dir: Path,
    *,
    num_connections: int = NUM_CONNECTIONS,
    policy: RetryPolicy = DEFAULT_POLICY,
    progress: ProgressHook = lambda num_bytes: None,
) -> Transfer:
    """Copy a cache from a URL to an empty or missing directory, or resume an earlier pull of the same cache.

    Local files with the recorded size and sha256 are kept. An equal cache that is finished and has all its files is
    left as it is. Files are hashed on their way to the disk, so they are not read a second time. Rows are checked when
    they are used, or by verify_cache. plan.json and commit records are made from the manifest. `progress` receives the
    bytes of shards and listed files as they arrive, and those of kept files.

    Raise NoCacheError or UnfinishedRemoteError when the URL has no finished cache; CacheMismatchError when another
    cache is in the directory; ConfigError for a directory that holds something else or to which another pull writes, or
    a URL that cannot be served; LinkInTheWayError when a symbolic link is where a file is to be written; RecordError,
    FormatVersionError or UnsafePathError for a manifest that is not sound;
    WriteRefusedError when a write fails; TransferError when an error is final or a file's deadline has passed.
    """
    crew = Crew(num_connections, progress)
    remote = RemoteDirectory(url, policy, sleep=crew.sleep)
    manifest, content = read_remote_manifest(remote)
    check_listed_files(manifest, remote.url)
    listed: list[ShardRecord | FileRecord] = [*manifest.shards, *manifest.files]
    copied: list[ShardRecord | FileRecord] = []
    with only_writer(cache_dir, "pull"):
        if not _is_finished(cache_dir, manifest):
            remove_leftovers(cache_dir)
            write_plan(cache_dir, manifest.identity)
            fetched = crew.map(lambda record: _fetch(remote, cache_dir, record, crew.tell), listed)
            copied = [record for record, is_new in zip(listed, fetched, strict=True) if is_new]
            write_file(safe_join(cache_dir, MANIFEST_NAME, str(cache_dir)), content)
    return Transfer(
        num_shards=len(manifest.shards),
        num_copied_files=len(copied),
        num_kept_files=len(listed) - len(copied),
        num_copied_bytes=sum(record.num_bytes for record in copied),
    )


def _units(cache_dir: Path, manifest: Manifest) -> list[Unit]:
    """Return what is put between plan.json and manifest.json; raise RecordError when the local records disagree."""
    check_plan(cache_dir, manifest)
    units = []
    for shard in manifest.shards:
        commit = as_file(shard.key.commit_path, check_commit(cache_dir, shard))
        units.append(Unit(files=(shard, commit), told_bytes=shard.shard_bytes))
    return units + [Unit(files=(file,), told_bytes=file.file_bytes) for file in manifest.files]


def _refuse_another_cache(remote: RemoteDirectory, manifest: Manifest) -> None:
    """Raise CacheMismatchError when the plan or the manifest at the URL is that of another cache."""
    plan = read_remote(remote, PLAN_NAME, read_plan)
    if plan is not None:
        _require_same(remote.url, plan[0], manifest.identity)
    finished = read_remote(remote, MANIFEST_NAME, read_manifest)
    if finished is not None:
        _require_same(remote.url, finished[0], manifest)


def _require_same(where: str, found: Parsed, wanted: Parsed) -> None:
    if found != wanted:
        pairs = _differences(dataclasses.asdict(found), dataclasses.asdict(wanted), "")
        field, *values = next(pairs)
        raise CacheMismatchError(where, field.removeprefix("identity."), *values)


def _differences(found: object, wanted: object, name: str) -> Iterator[tuple[str, object, object]]:
    """Yield (name, found, wanted) for each smallest part in which two records differ, with names like `a.b[0]`."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*wanted, *sorted(found.keys() - wanted.keys())]:
            yield from _differences(found.get(key), wanted.get(key), f"{name}.{key}".lstrip("."))
    elif isinstance(found, tuple) and isinstance(wanted, tuple) and len(found) == len(wanted):
        for index, pair in enumerate(zip(found, wanted, strict=True)):
            yield from _differences(*pair, f"{name}[{index}]")
    elif found != wanted:
        yield name, found, wanted


def _is_finished(cache_dir: Path, manifest: Manifest) -> bool:
    """Return whether the cache is finished here: its records agree, and every file is there in its recorded size.

    Raise CacheMismatchError for another cache, ConfigError for a directory that holds something else.
    """
    if (cache_dir / MANIFEST_NAME).exists():
        here = open_cache(cache_dir)
        _require_same(str(cache_dir), here.manifest, manifest)
        listed: list[ShardRecord | FileRecord] = [*manifest.shards, *manifest.files]
        return not check_records(here) and all(is_held(cache_dir, file) for file in listed)
    if (cache_dir / PLAN_NAME).exists():
        _require_same(str(cache_dir), read_plan(cache_dir), manifest.identity)
    elif any(not path.name.startswith(TEMPORARY_PREFIX) for path in cache_dir.iterdir()):
        raise ConfigError(f"{cache_dir}: holds something that is not a cache; name a new or an empty directory")
    return False


def _fetch(remote: RemoteDirectory, cache_dir: Path, record: ShardRecord | FileRecord, progress: ProgressHook) -> bool:
    """Download a file unless it is there and whole; commit it if it is a shard. Return whether it was downloaded."""
    is_new = ensure_file(
        cache_dir,
        record,
        lambda path: remote.download(record.path, path, record.num_bytes, record.sha256, progress),
    )
    if not is_new:
        progress(record.num_bytes)
    if isinstance(record, ShardRecord):
        write_commit(cache_dir, record)
    return is_new
