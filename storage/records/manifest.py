"""Read and write manifest.json: a finished cache's identity, shards in order, and other files. It is written last."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.disk.files import TEMPORARY_PREFIX
from storage.disk.safe_paths import safe_join, safe_join_to_read, safe_parts
from storage.errors import RecordError, UnsafePathError
from storage.records.identity import (
    PLAN_NAME,
    SPLITS,
    CacheIdentity,
    FileRecord,
    ShardKey,
    ShardRecord,
    identity_content,
    parse_identity,
    parse_shard_record,
    read_versioned,
)
from storage.records.records import LARGEST_INT, is_sha256, parse_fields, write_record
from storage.rows.kinds import KINDS

MANIFEST_NAME = "manifest.json"
# The dataset card.
CARD_NAME = "README.md"
TOKENIZER_DIR = "tokenizer"
# A manifest may not list files at or below these names, nor below the names of kinds: teachonce itself writes there.
_RESERVED = frozenset((MANIFEST_NAME, PLAN_NAME, "commits", ".work", "lock"))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A finished cache: its identity, its shards in order, and its other files."""

    identity: CacheIdentity
    shards: tuple[ShardRecord, ...]
    files: tuple[FileRecord, ...]

    def shards_of(self, kind: str, split: str) -> tuple[ShardRecord, ...]:
        """Return the shards of one kind and split, in order."""
        prefix = f"{kind}/{split}-"
        return tuple(shard for shard in self.shards if shard.path.startswith(prefix))

    def teacher_perplexity(self, split: str) -> float | None:
        """Return exp of the teacher's mean next-token loss over a split's valid targets.

        None when there are none, or when the cache lacks label_logprob.
        """
        mean = self._mean_nats(split, "label_logprob", "label_nll_sum_nats")
        if mean is None:
            return None
        try:
            return math.exp(mean)
        except OverflowError:
            return math.inf

    def teacher_entropy_nats(self, split: str) -> float | None:
        """Return the mean entropy of the teacher's next-token distribution over a split's valid targets.

        None when there are none, or when the cache lacks entropy.
        """
        return self._mean_nats(split, "entropy", "entropy_sum_nats")

    def _mean_nats(self, split: str, column: str, field: str) -> float | None:
        counted = [(getattr(shard, field), shard.num_targets) for shard in self.shards_of("soft_targets", split)]
        num_targets = sum(count for _, count in counted)
        is_known = num_targets and column not in self.identity.unknown_columns
        return math.fsum(total for total, _ in counted) / num_targets if is_known else None


def write_manifest(cache_dir: Path, manifest: Manifest) -> None:
    """Publish manifest.json, from which on the cache is complete. Raise WriteRefusedError or LinkInTheWayError."""
    content = identity_content(manifest.identity) | {
        "shards": [dataclasses.asdict(shard) for shard in manifest.shards],
        "files": [dataclasses.asdict(file) for file in manifest.files],
        "teacher_perplexity": {split: manifest.teacher_perplexity(split) for split in SPLITS},
        "teacher_entropy_nats": {split: manifest.teacher_entropy_nats(split) for split in SPLITS},
    }
    write_record(safe_join(cache_dir, MANIFEST_NAME, str(cache_dir)), content)


def read_manifest(cache_dir: Path) -> Manifest:
    """Read and check manifest.json. Raise RecordError, FormatVersionError, MissingFileError or UnsafePathError."""
    path = safe_join_to_read(cache_dir, MANIFEST_NAME, str(cache_dir))
    content = read_versioned(path)
    shards = tuple(parse_shard_record(item, path) for item in _objects(content, "shards", path))
    files = tuple(parse_fields(FileRecord, item, path) for item in _objects(content, "files", path))
    if len({file.path for file in files}) < len(files):
        raise RecordError(str(path), "'files' has a path twice")
    means = {name: content.pop(name, None) for name in ("teacher_perplexity", "teacher_entropy_nats")}
    identity = parse_identity(content, path)
    if len(shards) != identity.num_planned_shards:
        raise RecordError(str(path), "its shards are not the planned ones, each once and in order")
    planned = identity.planned_keys()
    if [shard.path for shard in shards] != [key.path for key in planned]:
        raise RecordError(str(path), "its shards are not the planned ones, each once and in order")
    _check_row_ids(identity, planned, shards, path)
    for shard in shards:
        if shard.num_rows > shard.shard_bytes * identity.record_batch_rows:
            raise RecordError(str(path), f"{shard.path} cannot hold {shard.num_rows} rows")
    manifest = Manifest(identity=identity, shards=shards, files=files)
    for name, found in means.items():
        expected_means = {split: getattr(manifest, name)(split) for split in SPLITS}
        if not _close(found, expected_means):
            raise RecordError(str(path), f"{name!r} is not what its shards add up to")
    return manifest


def check_listed_files(manifest: Manifest, where: str) -> None:
    """Raise UnsafePathError or RecordError when an untrusted manifest lists a file that must not be written.

    Call this before writing the files that it lists. Refuse paths that lead out of the cache's directory, or that a
    record, a shard, a temporary file or another listed file may have; negative sizes and malformed hashes. Errors name
    `where`.
    """
    for shard in manifest.shards:
        safe_parts(shard.path, where)
    reserved = _RESERVED | KINDS.keys()
    taken: set[str] = set()
    for file in manifest.files:
        safe_parts(file.path, where)
        folded = file.path.casefold()  # on some file systems README.md and readme.md are one file
        parts = folded.split("/")
        if parts[0] in reserved or folded in taken or any(part.startswith(TEMPORARY_PREFIX) for part in parts):
            raise UnsafePathError(file.path, where)
        if file.file_bytes < 0 or not is_sha256(file.sha256):
            raise RecordError(where, f"the record of {file.path} has a negative size or a malformed sha256")
        taken.add(folded)


def _close(found: object, expected: dict[str, float | None]) -> bool:
    if not isinstance(found, dict) or found.keys() != expected.keys():
        return False
    return all(
        found[split] is None
        if wanted is None
        else type(found[split]) in (int, float)
        and (type(found[split]) is float or abs(found[split]) <= LARGEST_INT)  # larger integers may not fit in a float
        and math.isclose(found[split], wanted, rel_tol=1e-9)
        for split, wanted in expected.items()
    )


def _check_row_ids(
    identity: CacheIdentity, planned: list[ShardKey], shards: tuple[ShardRecord, ...], path: Path
) -> None:
    starts = {place: identity.row_id_starts(*place) for place in itertools.product(KINDS, SPLITS)}
    next_row_id = 0
    seen: set[tuple[str, str, str]] = set()
    for key, shard in zip(planned, shards, strict=True):
        if key.index in starts[key.kind, key.split]:
            next_row_id = 0
        if shard.first_row_id != next_row_id:
            raise RecordError(str(path), f"rows of {shard.path} overlap or do not follow those of the shard before it")
        next_row_id += shard.num_rows
        # Row ids begin at 0 in each source, so only the sha256 shows that two shards hold the same rows.
        rows = (key.kind, key.split, shard.sha256)
        if shard.num_rows and rows in seen:
            raise RecordError(str(path), f"{shard.path} holds the rows of another shard")
        seen.add(rows)


def _objects(content: dict[str, Any], name: str, path: Path) -> list[dict[str, Any]]:
    items = content.pop(name, None)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise RecordError(str(path), f"{name!r} is not a list of objects")
    return items
