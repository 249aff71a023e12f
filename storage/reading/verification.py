"""Verify a cache: hash every byte, check every row, compare every count, name every file that does not belong to it.

Everything that is compared over several shards is in the manifest, whose reader checks it. So the checks of one shard
need no other, and processes share them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from storage.errors import (
    CacheError,
    ConfigError,
    RowError,
    UncheckedFileError,
    UnlistedFileError,
    UnreadableFileError,
)
from storage.processes import map_in_processes, num_cores
from storage.reading.cache import Cache
from storage.reading.places import DirectoryPlace, Place, place_at
from storage.reading.proofs import Proofs
from storage.reading.unlisted import unlisted_files
from storage.records.identity import CacheIdentity, FileRecord, ShardRecord
from storage.records.manifest import Manifest
from storage.remote.directory import ProgressHook
from storage.shards.shard import batch_stats

# A process takes as long to start as to check about 80 MB.
_BYTES_WORTH_A_PROCESS = 128 << 20


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The outcome of a verification: how much was checked, and one error for each problem. num_bytes: of the shards.

    remarks: what could not be looked for.
    """

    num_shards: int
    num_rows: int
    num_bytes: int
    problems: tuple[CacheError, ...]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A cache to verify: its path or URL, its place, and its manifest, against which all is checked."""

    path: str | Path
    place: Place
    manifest: Manifest

    @property
    def num_bytes(self) -> int:
        """Bytes of all listed files and shards, which `progress` receives in the end."""
        return sum(f.file_bytes for f in self.manifest.files) + sum(s.shard_bytes for s in self.manifest.shards)


def open_subject(path: str | Path) -> Subject:
    """Read the manifest at a path or URL; raise the errors of verify_cache when there is none to verify against."""
    place = place_at(path)
    return Subject(path=path, place=place, manifest=place.read_manifest())


def verify_cache(
    path: str | Path, progress: ProgressHook = lambda num_bytes: None, *, jobs: int | None = 1
) -> Verification:
    """Check everything in a cache. `progress` receives the number of bytes of each file after its check.

    Note shards without a problem for later streams (storage.reading.proofs).

    path: a directory, or any URL that fsspec reads. At a URL each file is read once and not kept; each job takes
    room for a shard in the directory for temporary files.
    jobs: number of processes, at most one for each shard. None takes one for each core, at most one for each 128 MiB.
    A script that asks for more than one must call this below `if __name__ == "__main__":`.

    Raise NoCacheError, IncompleteCacheError, UnfinishedRemoteError, RecordError or FormatVersionError when there is no
    manifest to verify against; UnreadableFileError or ConfigError when the URL cannot be reached or served; ConfigError
    for less than one job; WriteRefusedError when there is no room for a shard from a URL. Return every other problem,
    in the same order for any number of jobs.
    """
    return verify(open_subject(path), progress, jobs=jobs)


def verify(subject: Subject, progress: ProgressHook = lambda num_bytes: None, *, jobs: int | None = 1) -> Verification:
    """Check everything in an opened cache, as verify_cache does."""
    place, manifest = subject.place, subject.manifest
    problems = _caught(lambda: place.check_plan(manifest)) + _check_all(subject, progress, num_jobs(manifest, jobs))
    unlisted, remarks = _look_for_unlisted(place, manifest)
    return Verification(
        num_shards=len(manifest.shards),
        num_rows=sum(record.num_rows for record in manifest.shards),
        num_bytes=sum(record.shard_bytes for record in manifest.shards),
        problems=(*problems, *unlisted),
        remarks=remarks,
    )


def num_jobs(manifest: Manifest, wanted: int | None) -> int:
    """Return the number of processes for a verification: `wanted`, at most one for each shard.

    None means: as many as this process may use cores, and one for each _BYTES_WORTH_A_PROCESS of shards. Raise
    ConfigError for less than one.
    """
    if wanted is None:
        wanted = max(min(num_cores(), sum(shard.shard_bytes for shard in manifest.shards) // _BYTES_WORTH_A_PROCESS), 1)
    if wanted < 1:
        raise ConfigError(f"--jobs {wanted}: expected 1 or more")
    return max(min(wanted, len(manifest.shards)), 1)


def check_records(cache: Cache) -> list[CacheError]:
    """Return one error for each plan or commit record that differs from the opened cache's manifest. Read no shard."""
    place = DirectoryPlace(cache.path)
    problems = _caught(lambda: place.check_plan(cache.manifest))
    for record in cache.manifest.shards:
        problems += _caught(lambda record=record: place.check_commit(record))  # type: ignore[misc]
    return problems


@dataclass(frozen=True)
class _Check:
    """What one process does at a time: `run` checks the file at `path`, of which `num_bytes` are progress."""

    path: str
    num_bytes: int
    run: Callable[[Place, CacheIdentity], None]


def _checks(manifest: Manifest) -> Iterator[_Check]:
    """Yield all checks in the order in which their problems are told."""
    for shard in manifest.shards:
        yield _Check(shard.key.commit_path, 0, functools.partial(_check_commit, shard))
    for file in manifest.files:
        yield _Check(file.path, file.file_bytes, functools.partial(_check_file, file))
    for shard in manifest.shards:
        yield _Check(shard.path, shard.shard_bytes, functools.partial(_check_shard, shard))


def _check_all(subject: Subject, progress: ProgressHook, jobs: int) -> list[CacheError]:
    """Return the problems of all checks in the order of the checks."""
    found: dict[int, list[CacheError]] = {}

    def note(index: int, check: _Check, problems: list[CacheError]) -> None:
        if problems:
            found[index] = problems
        if check.num_bytes:
            progress(check.num_bytes)

    checks, identity = _checks(subject.manifest), subject.manifest.identity
    if jobs == 1:
        checker = _Checker(subject.place, identity)
        for index, check in enumerate(checks):
            note(index, check, checker(check))
    else:
        start = functools.partial(_start_checker, subject.path, identity)

        def killed(check: _Check, how: str) -> list[CacheError]:
            return [UncheckedFileError(subject.place.named(check.path), how)]

        map_in_processes(start, checks, jobs, killed=killed, done=note)
    return [problem for index in sorted(found) for problem in found[index]]


@dataclass(frozen=True)
class _Checker:
    """Runs the checks of one cache."""

    place: Place
    identity: CacheIdentity

    def __call__(self, check: _Check) -> list[CacheError]:
        return _caught(lambda: check.run(self.place, self.identity))


def _start_checker(path: str | Path, identity: CacheIdentity) -> _Checker:
    return _Checker(place_at(path), identity)


def _check_commit(record: ShardRecord, place: Place, identity: CacheIdentity) -> None:
    place.check_commit(record)


def _check_file(record: FileRecord, place: Place, identity: CacheIdentity) -> None:
    place.check_file(record)


def _check_shard(record: ShardRecord, place: Place, identity: CacheIdentity) -> None:
    kind = record.key.kind
    with place.open_shard(identity, record) as shard:
        stats = [batch_stats(shard.read_batch(index), kind) for index in range(shard.num_record_batches)]
    found = (
        sum(s.num_tokens for s in stats),
        sum(s.num_targets for s in stats),
        float(sum(s.entropy_sum_nats for s in stats)),
        float(sum(s.label_nll_sum_nats for s in stats)),
    )
    recorded = (record.num_tokens, record.num_targets, record.entropy_sum_nats, record.label_nll_sum_nats)
    if found != recorded:
        raise RowError(record.path, "counts", f"the rows give {found}, the manifest says {recorded}")
    with closing(Proofs()) as proofs:
        proofs.add(identity, record)


def _look_for_unlisted(place: Place, manifest: Manifest) -> tuple[list[CacheError], tuple[str, ...]]:
    """Return one error for each file that does not belong to the cache, and a remark when they cannot be looked for."""
    try:
        return [UnlistedFileError(place.named(path)) for path in unlisted_files(manifest, place.names)], ()
    except UnreadableFileError as error:  # who may read may not be allowed to list
        return [], (f"files that are no part of the cache were not looked for: {error.reason}",)


def _caught(check: Callable[[], object]) -> list[CacheError]:
    try:
        check()
    except CacheError as error:
        return [error]
    return []
