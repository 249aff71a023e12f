"""Write and read one shard, an Arrow IPC file with zstd-compressed buffers.

The writer, the verifier and the training reader check rows with the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from storage.disk.files import publishing
from storage.disk.hashing import sha256_file
from storage.disk.safe_paths import safe_join, safe_join_to_read
from storage.errors import (
    HashMismatchError,
    LinkTargetError,
    MissingFileError,
    RowError,
    ShardFormatError,
    UnreadableFileError,
)
from storage.records.identity import CacheIdentity, FileRecord, ShardKey, ShardRecord
from storage.rows import columns
from storage.rows.kind import BatchStats
from storage.rows.kinds import KINDS
from storage.shards.arrow_claims import ClaimError, check_claims, stored_buffer_bytes

ZSTD_LEVEL = 3
# The memory pool for record batches that are read. Arrow's own allocator returns pages to the system between record
# batches and takes new ones, which costs a tenth to a fifth of the time of a stream's first epoch.
BATCH_MEMORY = pa.system_memory_pool()
_UNREADABLE = (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError)


def ipc_write_options(zstd_level: int = ZSTD_LEVEL) -> pa.ipc.IpcWriteOptions:
    """Return the write options of every shard: zstd at this level."""
    return pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=zstd_level))


def write_shard(
    cache_dir: Path,
    identity: CacheIdentity,
    key: ShardKey,
    first_row_id: int,
    batches: Iterable[pa.RecordBatch],
    zstd_level: int = ZSTD_LEVEL,
) -> ShardRecord:
    """Check and write record batches as one shard, publish it, and return its record for the caller to commit.

    If another writer, perhaps a killed one, has published a file under this name, stage the new file beside it until
    a commit record decides between them.

    Raise RowError for a row that breaks the format, LinkInTheWayError when the shard's path is or leads through a
    symbolic link, WriteRefusedError when a write fails. Publish nothing then.
    """
    schema = identity.schema(key.kind)
    options = ipc_write_options(zstd_level)
    stats: list[BatchStats] = []
    num_rows = 0
    path = safe_join(cache_dir, key.path, str(cache_dir))
    with publishing(path, "stage") as file, pa.ipc.new_file(file, schema, options=options) as writer:
        for batch in batches:
            where = f"{key.path}, record batch {len(stats)}"
            check_batch(batch, key.kind, identity, where)
            if num_rows % identity.record_batch_rows or batch.num_rows > identity.record_batch_rows:
                raise RowError(where, "row_id", f"batches are not of {identity.record_batch_rows} rows")
            if batch.num_rows and columns.plain(batch, "row_id")[0] != first_row_id + num_rows:
                raise RowError(where, "row_id", f"does not begin at {first_row_id + num_rows}")
            stats.append(batch_stats(batch, key.kind))
            num_rows += batch.num_rows
            writer.write_batch(columns.with_own_bits(batch))
    written = FileRecord(path=key.path, file_bytes=file.num_bytes, sha256=file.sha256)
    return _shard_record(written, first_row_id, num_rows, stats)


def _shard_record(file: FileRecord, first_row_id: int, num_rows: int, stats: list[BatchStats]) -> ShardRecord:
    return ShardRecord(
        path=file.path,
        first_row_id=first_row_id,
        num_rows=num_rows,
        num_tokens=sum(s.num_tokens for s in stats),
        num_targets=sum(s.num_targets for s in stats),
        entropy_sum_nats=float(sum(s.entropy_sum_nats for s in stats)),
        label_nll_sum_nats=float(sum(s.label_nll_sum_nats for s in stats)),
        shard_bytes=file.file_bytes,
        sha256=file.sha256,
    )


def check_batch(batch: pa.RecordBatch, kind: str, identity: CacheIdentity, where: str) -> None:
    """Raise RowError, which names `where`, unless every row of the batch obeys the rules of its kind."""
    _check_row_ids(batch, where)
    check_rows(batch, kind, identity, where)


def _check_row_ids(batch: pa.RecordBatch, where: str) -> None:
    row_ids = columns.plain(batch, "row_id")
    if np.any(np.diff(row_ids) != 1):
        raise RowError(where, "row_id", "does not count up by one")


def check_rows(batch: pa.RecordBatch, kind: str, identity: CacheIdentity, where: str) -> None:
    """Do what check_batch does, but for row ids: the batch may hold rows of several record batches."""
    facts = identity.row_facts(kind)
    KINDS[kind].check(batch, facts, where)
    KINDS[kind].check_sizes(batch, facts, where)


def batch_stats(batch: pa.RecordBatch, kind: str) -> BatchStats:
    """Return the counts and sums of one record batch."""
    return KINDS[kind].statistics(batch)


def check_file(cache_dir: Path, record: ShardRecord | FileRecord) -> Path:
    """Return the path of a recorded file after checking that its size and sha256 are as recorded.

    Raise MissingFileError, UnreadableFileError, HashMismatchError, LinkTargetError or UnsafePathError.
    """
    path = safe_join_to_read(cache_dir, record.path, str(cache_dir))
    if not path.is_file():
        raise MissingFileError(str(path))
    if path.stat().st_size != record.num_bytes:
        raise HashMismatchError(str(path), f"{path.stat().st_size} bytes", f"{record.num_bytes} bytes")
    try:
        found = sha256_file(path)
    except OSError as error:
        raise UnreadableFileError(str(path), error.strerror) from error
    if found != record.sha256:
        raise HashMismatchError(str(path), f"sha256 {found[:16]}…", f"{record.sha256[:16]}…")
    return path


def ensure_file(cache_dir: Path, record: ShardRecord | FileRecord, bring: Callable[[Path], object]) -> bool:
    """Call `bring` with the path of a recorded file if it is missing, damaged or unreadable; return whether it was.

    Raise UnsafePathError, LinkInTheWayError instead of writing through a symbolic link, and any error that `bring`
    raises.
    """
    try:
        check_file(cache_dir, record)
    except (MissingFileError, HashMismatchError, LinkTargetError, UnreadableFileError):
        bring(safe_join(cache_dir, record.path, str(cache_dir)))
        return True
    return False


def record_of_rows(path: Path, identity: CacheIdentity, file: FileRecord, like: ShardRecord) -> ShardRecord:
    """Read and check every row of the shard at `path` and return its record.

    file: its path in the cache, size and sha256. like: a record of the same rows, perhaps with other values. Raise
    ShardFormatError or RowError when the file does not hold these rows.
    """
    shard = Shard(path, identity, like)
    stats = [batch_stats(shard.read_batch(index), like.key.kind) for index in range(shard.num_record_batches)]
    return _shard_record(file, like.first_row_id, like.num_rows, stats)


def _has_nulls(column: pa.Array) -> bool:
    """Return whether a column or its elements hold nulls.

    Count elements that belong to no list too: one null changes the dtype that all elements are read as.
    """
    return bool(column.null_count or (pa.types.is_nested(column.type) and column.values.null_count))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


class Shard:
    """An open shard. Its record batches are read, decompressed and checked one by one."""

    def __init__(self, path: Path, identity: CacheIdentity, record: ShardRecord, where: str | None = None) -> None:
        """Open the shard at `path`, whose sha256 the caller has checked; read no rows.

        where: its name in messages, by default `path`.

        Raise ShardFormatError when it is not the Arrow file that the identity and the record promise.
        """
        self.record = record
        self._identity = identity
        self._named = where or str(path)
        try:
            file = pa.memory_map(str(path))
            # Do not swap bytes of another byte order: then the comparison of schemas below refuses the file. Decompress
            # in the thread that reads: the other cores have other shards to verify, or the rows of a stream to use.
            options = pa.ipc.IpcReadOptions(ensure_native_endian=False, use_threads=False)
            self._reader = pa.ipc.open_file(file, options=options, memory_pool=BATCH_MEMORY)
            found, found_names = self._reader.schema, self._reader.schema.names
            self._content = file.read_buffer()
            check_claims(self._content)
        except ClaimError as error:
            raise ShardFormatError(self._named, str(error)) from error
        except _UNREADABLE as error:
            raise ShardFormatError(self._named, f"not an Arrow IPC file ({_one_line(error)})") from error
        wanted = identity.schema(record.key.kind)
        if not found.equals(wanted, check_metadata=True):
            raise ShardFormatError(
                self._named,
                f"its columns are {found_names}, expected {wanted.names}, each of its type and without metadata",
            )
        expected_batches = -(-record.num_rows // identity.record_batch_rows)
        if self._reader.num_record_batches != expected_batches:
            raise ShardFormatError(
                self._named,
                f"holds {self._reader.num_record_batches} record batches, expected {expected_batches}",
            )

    @property
    def num_record_batches(self) -> int:
        """Number of record batches in the file."""
        return int(self._reader.num_record_batches)

    def column_bytes(self) -> dict[str, int]:
        """Return the bytes that each column's compressed buffers take in the file; raise ShardFormatError."""
        num_buffers = {field.name: columns.num_buffers(field.type) for field in self._reader.schema}
        num_all = sum(num_buffers.values())
        try:
            stored = stored_buffer_bytes(self._content) or [0] * num_all
        except ClaimError as error:
            raise ShardFormatError(self._named, str(error)) from error
        if len(stored) != num_all:
            raise ShardFormatError(self._named, f"has {len(stored)} buffers, expected {num_all}")
        sizes = iter(stored)
        return {name: sum(islice(sizes, count)) for name, count in num_buffers.items()}

    def read_batch(self, index: int) -> pa.RecordBatch:
        """Read and check record batch `index`; raise ShardFormatError or RowError."""
        batch = self.read_unchecked(index)
        self.check(batch, index)
        return batch

    def read_unchecked(self, index: int) -> pa.RecordBatch:
        """Read record batch `index` without checking its rows; raise ShardFormatError if it cannot be read.

        The caller must check the batch before using it, unless this record batch has been checked before.
        """
        try:
            return self._reader.get_batch(index)
        except _UNREADABLE as error:
            raise self._unreadable(index, error) from error

    def check(self, batch: pa.RecordBatch, index: int) -> None:
        """Raise ShardFormatError or RowError unless `batch`, read as record batch `index`, obeys the format."""
        self._check_form(batch, index)
        check_rows(batch, self.record.key.kind, self._identity, self._where(index))

    def _check_form(self, batch: pa.RecordBatch, index: int) -> None:
        """Raise the errors of `check` that are not about what the rows say."""
        try:
            batch.validate(full=True)
        except _UNREADABLE as error:
            raise self._unreadable(index, error) from error
        where = self._where(index)
        per_batch = self._identity.record_batch_rows
        wanted_rows = min(per_batch, self.record.num_rows - index * per_batch)
        if batch.num_rows != wanted_rows:
            raise ShardFormatError(where, f"holds {batch.num_rows} rows, expected {wanted_rows}")
        if any(_has_nulls(column) for column in batch.columns):
            raise ShardFormatError(where, "holds nulls")
        _check_row_ids(batch, where)
        if columns.plain(batch, "row_id")[0] != self.record.first_row_id + index * per_batch:
            raise RowError(where, "row_id", "is not where the manifest puts it")

    def _where(self, index: int) -> str:
        return f"{self._named}, record batch {index}"

    def _unreadable(self, index: int, error: BaseException) -> ShardFormatError:
        return ShardFormatError(self._where(index), f"cannot be read ({_one_line(error)})")


def all_obey(parts: Sequence[tuple[Shard, int, pa.RecordBatch]]) -> bool:
    """Return whether Shard.check raises nothing for any of these record batches, each read from a shard at an index.

    All shards are of one kind and cache. The rows are checked together: fewer and longer operations.
    """
    shard = parts[0][0]
    try:
        for part_shard, index, batch in parts:
            part_shard._check_form(batch, index)
        rows = pa.concat_batches([batch for _, _, batch in parts], memory_pool=BATCH_MEMORY)
        check_rows(rows, shard.record.key.kind, shard._identity, "")
    except Exception:  # whatever it is, `check` of the record batch at fault raises it again
        return False
    return True
