"""The identity of a cache, which is known before its first shard, and the records of its shards and other files.

plan.json holds the identity alone. A commit record holds one shard's record. manifest.json holds the identity and all
records of shards and files.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.errors import FormatVersionError, RecordError, UnsafePathError
from storage.records.records import MAX_RECORD_BYTES, is_sha256, parse_fields, read_record
from storage.records.settings import check_settings
from storage.rows import soft_targets
from storage.rows.kind import RowFacts
from storage.rows.kinds import KINDS

FORMAT_NAME = "teachonce-cache"
# The newest version. A cache has the lowest that its kinds need, so that older readers read it, too.
FORMAT_VERSION = 3
PLAN_NAME = "plan.json"
SPLITS = ("train", "validation")
# The teacher's architecture and dtype in a cache that was imported, whose source says nothing of them.
NOT_STATED = "unknown"

_SHARD_PATH = re.compile(r"([a-z_]+)/(train|validation)-([0-9]{5,9})-of-([0-9]{5,9})\.arrow")
_MAX_VOCAB_SIZE = 1 << 31
_MAX_BLOCK_SIZE = 1 << 20
_MAX_RECORD_BATCH_ROWS = 1 << 16
# A shard's record takes up to 512 bytes of a manifest. So the manifest of a cache with this many shards can be read.
MAX_SHARDS = MAX_RECORD_BYTES // 512
# MAX_SHARDS shards of this many rows have row ids that fit in int64.
_MAX_SHARD_ROWS = 1 << 40
_MAX_TEMPERATURE = 1e6
_FACTS: dict[str, dict[str, type]] = {
    "teacher": {"id": str, "architecture": str, "num_parameters": int, "dtype": str},
    "data": {"source": str},
}
_SOURCE_FACTS: dict[str, type] = {
    "source": str,
    "fingerprint": str,
    "config": dict,
    "software": dict,
    "planned_shards": dict,
}


@dataclass(frozen=True, kw_only=True)
class ShardKey:
    """Names a shard: its kind, its split, and its index among the num_shards shards of that kind and split."""

    kind: str
    split: str
    index: int
    num_shards: int

    @property
    def path(self) -> str:
        """Path inside the cache."""
        return f"{self.kind}/{self.split}-{self.index:05d}-of-{self.num_shards:05d}.arrow"

    @property
    def commit_path(self) -> str:
        """Path of the commit record inside the cache."""
        return f"commits/{self.kind}-{self.split}-{self.index:05d}.json"


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """One published shard.

    num_tokens: number of stored input, prompt, completion and candidate tokens.
    num_targets: number of valid targets (soft_targets), completion tokens (samples) or candidates (beams).
    entropy_sum_nats, label_nll_sum_nats: sums over valid targets, which give the teacher's entropy and perplexity
    without opening a shard; 0 for kinds other than soft_targets, and where the cache lacks their column.
    """

    path: str
    first_row_id: int
    num_rows: int
    num_tokens: int
    num_targets: int
    entropy_sum_nats: float
    label_nll_sum_nats: float
    shard_bytes: int
    sha256: str

    @property
    def num_bytes(self) -> int:
        """Size of the file in bytes, under the name that FileRecord also has."""
        return self.shard_bytes

    @property
    def key(self) -> ShardKey:
        """The key that the path states. Raise UnsafePathError for a path that is not a shard's."""
        return parse_shard_path(self.path, "shard record")


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """A file of the cache that is not a shard: the dataset card or a file of the tokenizer."""

    path: str
    file_bytes: int
    sha256: str

    @property
    def num_bytes(self) -> int:
        """Size of the file in bytes, under the name that ShardRecord also has."""
        return self.file_bytes


@dataclass(frozen=True, kw_only=True)
class CacheIdentity:
    """Everything about a cache that is known before its first shard.

    teacher: id, revision, architecture, num_parameters, context_length, dtype, weights_bytes, weights_sha256.
    tokenizer: size, sha256, eos_token_id, and where they are not the usual ones beginning_ids and end_ids (see below).
    data: source, fingerprint, licence, packing recipe, counts.
    config: the resolved settings of the block layout and of each kind.
    software: versions.
    planned_shards: number of shards for each kind and split.

    In a merged cache data["sources"] lists the caches that were joined, in the order of their shards. Each entry is a
    source's data with its config, software and planned_shards.
    """

    vocab_size: int
    block_size: int
    record_batch_rows: int
    temperatures: tuple[float, ...]
    teacher: dict[str, Any]
    tokenizer: dict[str, Any]
    data: dict[str, Any]
    config: dict[str, Any]
    software: dict[str, str]
    planned_shards: dict[str, dict[str, int]]

    @property
    def mantissa_bits(self) -> int:
        """Mantissa bits that the logprobs of soft targets were rounded to."""
        return soft_targets.mantissa_bits(self.config.get("soft_targets", {}))

    @property
    def scalar_mantissa_bits(self) -> int:
        """Mantissa bits that tail_logprob and label_logprob of soft targets were rounded to."""
        return soft_targets.scalar_mantissa_bits(self.config.get("soft_targets", {}))

    @property
    def unknown_columns(self) -> tuple[str, ...]:
        """The columns of soft targets that the cache lacks, because whoever made its rows did not know them."""
        return soft_targets.unknown_columns(self.config.get("soft_targets", {}))

    @property
    def beginning_ids(self) -> tuple[int, ...]:
        """Ids that every segment and every prompt begins with, () for none."""
        return tuple(self.tokenizer.get("beginning_ids", ()))

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end a text, () for none. A cache that does not state them has the tokenizer's own alone."""
        eos = self.tokenizer.get("eos_token_id")
        return tuple(self.tokenizer.get("end_ids", () if eos is None else (eos,)))

    def row_facts(self, kind: str) -> RowFacts:
        """Return what the cache states about the rows of a kind."""
        return RowFacts(
            vocab_size=self.vocab_size,
            block_size=self.block_size,
            temperatures=self.temperatures,
            settings=self.config.get(kind, {}),
            longest_prompt_tokens=self.data.get("longest_prompt_tokens", {}).get(kind),
        )

    def schema(self, kind: str) -> Any:
        """Return the Arrow schema of a kind's shards in this cache."""
        return KINDS[kind].schema(self.row_facts(kind))

    def row_id_starts(self, kind: str, split: str) -> frozenset[int]:
        """Return the indices of the shards whose row ids begin at 0.

        These are shard 0 and, in a merged cache, the first shard of each source.
        """
        parts = [source["planned_shards"] for source in self.data.get("sources", [])]
        counts = (planned.get(kind, {}).get(split, 0) for planned in parts)
        return frozenset(itertools.accumulate(counts, initial=0))

    @property
    def num_planned_shards(self) -> int:
        """Number of shards that the finished cache will hold."""
        return sum(sum(per_split.values()) for per_split in self.planned_shards.values())

    def planned_keys(self) -> list[ShardKey]:
        """Return the key of every shard that the finished cache will hold, in order."""
        return [
            ShardKey(kind=kind, split=split, index=index, num_shards=num_shards)
            for kind in KINDS
            for split in SPLITS
            for num_shards in [self.planned_shards.get(kind, {}).get(split, 0)]
            for index in range(num_shards)
        ]


def describe_teacher(teacher: dict[str, Any]) -> str:
    """Return a teacher's architecture, size and number format, as far as the cache knows them."""
    if teacher["architecture"] == NOT_STATED:
        return "not described: its targets were imported"
    return f"{teacher['architecture']}, {teacher['num_parameters']:,} parameters, {teacher['dtype']}"


def parse_shard_path(path: str, where: str) -> ShardKey:
    """Return the key of the shard at `path`; raise UnsafePathError, which names `where`, for any other path."""
    matched = _SHARD_PATH.fullmatch(path)
    if matched is None:
        raise UnsafePathError(path, where)
    kind, split, index, num_shards = matched.groups()
    key = ShardKey(kind=kind, split=split, index=int(index), num_shards=int(num_shards))
    if kind not in KINDS or key.path != path or key.index >= key.num_shards:
        raise UnsafePathError(path, where)
    return key


def identity_content(identity: CacheIdentity) -> dict[str, Any]:
    """Return the content of plan.json, which manifest.json also holds."""
    content = dataclasses.asdict(identity)
    return {"format": FORMAT_NAME, "format_version": _version_of(content)} | content


def _version_of(content: dict[str, Any]) -> int:
    """Return the format version of a cache with this identity: the highest that one of its kinds needs."""
    config = content.get("config")
    stated = [(kind, config.get(name)) for name, kind in KINDS.items()] if isinstance(config, dict) else []
    return max((kind.format_version(settings) for kind, settings in stated if isinstance(settings, dict)), default=1)


def read_versioned(path: Path) -> dict[str, Any]:
    """Return the content of plan.json or manifest.json, without 'format' and 'format_version'.

    Raise RecordError, FormatVersionError or MissingFileError.
    """
    content = read_record(path)
    if content.pop("format", None) != FORMAT_NAME:
        raise RecordError(str(path), f"'format' is not {FORMAT_NAME!r}")
    version = content.pop("format_version", None)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise RecordError(str(path), f"'format_version' is {version!r}")
    if version > FORMAT_VERSION:
        raise FormatVersionError(str(path), version, FORMAT_VERSION)
    if version != (expected := _version_of(content)):
        raise RecordError(str(path), f"'format_version' is {version}, expected {expected} with these settings")
    return content


def parse_identity(content: dict[str, Any], path: Path) -> CacheIdentity:
    """Return the identity in a record's content; raise RecordError, which names `path`, when it is not sound."""
    identity = parse_fields(CacheIdentity, content, path)
    for name, facts in _FACTS.items():
        for fact, fact_type in facts.items():
            if type(getattr(identity, name).get(fact)) is not fact_type:
                raise RecordError(str(path), f"{name!r} has no {fact!r}, or not as {fact_type.__name__}")
    if not 1 <= identity.vocab_size <= _MAX_VOCAB_SIZE:
        raise RecordError(str(path), f"'vocab_size' is {identity.vocab_size}")
    for name, most in (("block_size", _MAX_BLOCK_SIZE), ("record_batch_rows", _MAX_RECORD_BATCH_ROWS)):
        if not 1 <= getattr(identity, name) <= most:
            raise RecordError(str(path), f"{name!r} is {getattr(identity, name)}, expected 1 to {most}")
    _check_planned_shards(identity.planned_shards, path)
    if identity.num_planned_shards > MAX_SHARDS:
        raise RecordError(str(path), f"'planned_shards' has more than {MAX_SHARDS} shards")
    if "sources" in identity.data:
        _check_sources(identity, path)
    temperatures = identity.temperatures
    if not temperatures or not all(type(t) in (int, float) and 0 < t <= _MAX_TEMPERATURE for t in temperatures):
        raise RecordError(str(path), f"'temperatures' must be numbers above 0 and up to {_MAX_TEMPERATURE:g}")
    if len({soft_targets.tempered_column(t) for t in temperatures}) < len(temperatures):
        raise RecordError(str(path), "'temperatures' has two alike")
    check_settings(vars(identity), identity.vocab_size, path)
    return dataclasses.replace(identity, temperatures=tuple(float(t) for t in temperatures))


def _check_planned_shards(planned: dict[str, Any], path: Path) -> None:
    for kind, per_split in planned.items():
        if kind not in KINDS or not isinstance(per_split, dict) or not set(per_split) <= set(SPLITS):
            raise RecordError(str(path), f"'planned_shards' has an unknown kind or split at {kind!r}")
        if any(type(count) is not int or count < 0 for count in per_split.values()):
            raise RecordError(str(path), f"'planned_shards' has a count that is not a number at {kind!r}")


def _check_sources(identity: CacheIdentity, path: Path) -> None:
    """Raise RecordError unless the sources of a merged cache are complete, all different, and add up to its shards."""
    sources = identity.data["sources"]
    if not isinstance(sources, list) or len(sources) < 2:
        raise RecordError(str(path), "'sources' is not a list of two or more")
    for source in sources:
        if not isinstance(source, dict) or any(type(source.get(k)) is not t for k, t in _SOURCE_FACTS.items()):
            raise RecordError(str(path), f"'sources' has an entry without one of {sorted(_SOURCE_FACTS)}")
        _check_planned_shards(source["planned_shards"], path)
    if len({source["fingerprint"] for source in sources}) < len(sources):
        raise RecordError(str(path), "'sources' has the same data twice")
    for kind, split in itertools.product(KINDS, SPLITS):
        in_sources = sum(source["planned_shards"].get(kind, {}).get(split, 0) for source in sources)
        if in_sources != identity.planned_shards.get(kind, {}).get(split, 0):
            raise RecordError(str(path), f"'sources' have {in_sources} {kind} shards in the {split} split")


def parse_shard_record(item: dict[str, Any], path: Path) -> ShardRecord:
    """Return the shard record in a JSON object; raise RecordError or UnsafePathError, which name `path`."""
    record = parse_fields(ShardRecord, item, path)
    parse_shard_path(record.path, str(path))
    counts = (record.first_row_id, record.num_rows, record.num_tokens, record.num_targets, record.shard_bytes)
    if min(counts) < 0 or not is_sha256(record.sha256):
        raise RecordError(str(path), f"the record of {record.path} has a negative count or a malformed sha256")
    if record.num_rows > _MAX_SHARD_ROWS:
        raise RecordError(str(path), f"{record.path} cannot hold {record.num_rows} rows")
    return record
