"""What a cache says about itself: the plan it was begun with, its shards, and the manifest.

plan.json is written first, commit records as shards appear, manifest.json last: the plan and the
commit records, joined.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from storage.disk.files import TEMPORARY_PREFIX, IfTaken, install_staged, staged_path
from storage.disk.safe_paths import safe_join
from storage.errors import FormatVersionError, RecordError, UnsafePathError
from storage.records.records import MAX_RECORD_BYTES, parse_record, read_record, read_record_bytes, write_record
from storage.records.settings import check_settings
from storage.rows import beams, samples, soft_targets
from storage.rows.bit_rounding import FLOAT16_MANTISSA_BITS

FORMAT_NAME = "teachonce-cache"
FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
PLAN_NAME = "plan.json"
# The dataset card.
CARD_NAME = "README.md"
KINDS = ("soft_targets", "samples", "beams")
SPLITS = ("train", "validation")
# A manifest may not list these among its other files: they are written from the rest of it.
_RESERVED = frozenset((MANIFEST_NAME, PLAN_NAME, "commits", ".work", "lock", *KINDS))

_SHARD_PATH = re.compile(r"(soft_targets|samples|beams)/(train|validation)-([0-9]{5,9})-of-([0-9]{5,9})\.arrow")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_VOCAB_SIZE = 1 << 31
_MAX_BLOCK_SIZE = 1 << 20
_MAX_RECORD_BATCH_ROWS = 1 << 16
# A shard takes up to 512 bytes of a manifest: whatever can be planned can be read when it is finished.
MAX_SHARDS = MAX_RECORD_BYTES // 512
# As many rows in as many shards still are an int64.
_MAX_SHARD_ROWS = 1 << 40
_MAX_TEMPERATURE = 1e6
_LARGEST_INT = (1 << 63) - 1

Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True)
class ShardKey:
    """Which shard: kind, split and index among num_shards of that kind and split."""

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

    num_tokens counts stored input, prompt and completion tokens; num_targets the valid targets
    (soft_targets), completion tokens (samples) or candidates (beams). The two sums over valid targets,
    in nats, give the teacher's entropy and perplexity without opening a shard; 0 for other kinds.
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
        """Size of the file, as FileRecord has it too."""
        return self.shard_bytes

    @property
    def key(self) -> ShardKey:
        """The shard's place, read from its path."""
        return parse_shard_path(self.path, "shard record")


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """A file of the cache that is not a shard: the tokenizer's and the dataset card."""

    path: str
    file_bytes: int
    sha256: str

    @property
    def num_bytes(self) -> int:
        """Size of the file, as ShardRecord has it too."""
        return self.file_bytes


@dataclass(frozen=True, kw_only=True)
class CacheIdentity:
    """Everything about a cache that is known before its first shard.

    teacher: id, revision, architecture, num_parameters, context_length, dtype, weights_bytes, weights_sha256.
    tokenizer: size, sha256, eos_token_id. data: source, fingerprint, licence, packing recipe, counts.
    config: the resolved settings of the block layout and of each kind. software: versions.
    planned_shards: for each kind and split the number of shards.

    In a merged cache data["sources"] lists what was joined, in the order of its shards: each entry is a
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
        """What the logprobs of soft targets were rounded to."""
        settings = self.config.get("soft_targets")
        bits = settings.get("mantissa_bits") if isinstance(settings, dict) else None
        return bits if type(bits) is int and 1 <= bits <= FLOAT16_MANTISSA_BITS else FLOAT16_MANTISSA_BITS

    def schema(self, kind: str) -> Any:
        """The Arrow schema of a kind's shards in this cache."""
        match kind:
            case "soft_targets":
                return soft_targets.schema(self.vocab_size, self.block_size, self.temperatures)
            case "samples":
                return samples.schema(self.vocab_size)
            case _:
                return beams.schema(self.vocab_size)

    def row_id_starts(self, kind: str, split: str) -> frozenset[int]:
        """Indices of the shards at which row ids begin at 0: the first one, in a merged cache that of each source."""
        parts = [source["planned_shards"] for source in self.data.get("sources", [])]
        counts = (planned.get(kind, {}).get(split, 0) for planned in parts)
        return frozenset(itertools.accumulate(counts, initial=0))

    @property
    def num_planned_shards(self) -> int:
        """Shards that the finished cache will hold."""
        return sum(sum(per_split.values()) for per_split in self.planned_shards.values())

    def planned_keys(self) -> list[ShardKey]:
        """Every shard that the finished cache will hold, in order."""
        return [
            ShardKey(kind=kind, split=split, index=index, num_shards=num_shards)
            for kind in KINDS
            for split in SPLITS
            for num_shards in [self.planned_shards.get(kind, {}).get(split, 0)]
            for index in range(num_shards)
        ]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A finished cache: its identity, its shards in order, and its other files."""

    identity: CacheIdentity
    shards: tuple[ShardRecord, ...]
    files: tuple[FileRecord, ...]

    def shards_of(self, kind: str, split: str) -> tuple[ShardRecord, ...]:
        """Shards of one kind and split, in order."""
        prefix = f"{kind}/{split}-"
        return tuple(shard for shard in self.shards if shard.path.startswith(prefix))

    def teacher_perplexity(self, split: str) -> float | None:
        """exp of the teacher's mean next-token loss over a split's valid targets, None without any."""
        mean = _mean_nats(self.shards_of("soft_targets", split), "label_nll_sum_nats")
        if mean is None:
            return None
        try:
            return math.exp(mean)
        except OverflowError:
            return math.inf

    def teacher_entropy_nats(self, split: str) -> float | None:
        """Mean entropy of the teacher's next-token distribution over a split's valid targets."""
        return _mean_nats(self.shards_of("soft_targets", split), "entropy_sum_nats")


def _mean_nats(shards: Iterable[ShardRecord], field: str) -> float | None:
    counted = [(getattr(shard, field), shard.num_targets) for shard in shards]
    num_targets = sum(count for _, count in counted)
    return math.fsum(total for total, _ in counted) / num_targets if num_targets else None


def parse_shard_path(path: str, where: str) -> ShardKey:
    """The key behind a shard's path; UnsafePathError for any other path."""
    matched = _SHARD_PATH.fullmatch(path)
    if matched is None:
        raise UnsafePathError(path, where)
    kind, split, index, num_shards = matched.groups()
    key = ShardKey(kind=kind, split=split, index=int(index), num_shards=int(num_shards))
    if key.path != path or key.index >= key.num_shards:
        raise UnsafePathError(path, where)
    return key


def write_plan(cache_dir: Path, identity: CacheIdentity, if_taken: IfTaken = "replace") -> None:
    """Publish plan.json."""
    write_record(cache_dir / PLAN_NAME, _versioned() | dataclasses.asdict(identity), if_taken)


def read_plan(cache_dir: Path) -> CacheIdentity:
    """Read plan.json; raises RecordError, FormatVersionError, MissingFileError or UnsafePathError."""
    path = safe_join(cache_dir, PLAN_NAME, str(cache_dir))
    return _parse_identity(_read_versioned(path), path)


def write_commit(cache_dir: Path, record: ShardRecord, if_taken: IfTaken = "replace") -> ShardRecord:
    """Publish a shard's commit record: from now on the shard exists.

    Returns the record that stands: with if_taken = "drop", that of the writer who was first.
    """
    write_record(cache_dir / record.key.commit_path, dataclasses.asdict(record), if_taken)
    standing = read_commit(cache_dir, record.key) or record
    install_committed(cache_dir, standing)
    if standing.sha256 != record.sha256:
        staged_path(cache_dir / record.path, record.sha256).unlink(missing_ok=True)
    return standing


def install_committed(cache_dir: Path, record: ShardRecord) -> None:
    """Put a committed shard into its place if it is still waiting beside it: its writer may have been killed."""
    install_staged(cache_dir / record.path, record.sha256)


def read_commit(cache_dir: Path, key: ShardKey) -> ShardRecord | None:
    """A shard's commit record, None when the shard is not committed."""
    found = _read_commit(cache_dir, key)
    return found[0] if found else None


def _read_commit(cache_dir: Path, key: ShardKey) -> tuple[ShardRecord, bytes] | None:
    """The commit record, and the bytes that it was read from."""
    path = safe_join(cache_dir, key.commit_path, str(cache_dir))
    if not path.exists():
        return None
    content = read_record_bytes(path)
    record = _parse_shard(parse_record(content, path), path)
    if record.path != key.path:
        raise RecordError(str(path), f"speaks of {record.path!r}, expected {key.path!r}")
    return record, content


def is_held(cache_dir: Path, record: ShardRecord | FileRecord) -> bool:
    """Whether a recorded file is there in its recorded size; what its bytes are is for whoever reads them."""
    try:
        found = (cache_dir / record.path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == record.num_bytes


def read_held_commit(cache_dir: Path, key: ShardKey) -> ShardRecord | None:
    """A shard's commit record; None when the shard has to be made: for the first time, or because its file is lost.

    A committed shard that still waits is put into its place.
    """
    record = read_commit(cache_dir, key)
    if record is None:
        return None
    install_committed(cache_dir, record)
    return record if is_held(cache_dir, record) else None


def forget_lost_shard(cache_dir: Path, key: ShardKey) -> None:
    """Remove the commit record of a shard whose file is lost, so that the first to make it anew may commit it."""
    if read_commit(cache_dir, key) is not None and read_held_commit(cache_dir, key) is None:
        (cache_dir / key.commit_path).unlink(missing_ok=True)


def check_plan(cache_dir: Path, manifest: Manifest) -> None:
    """Raise RecordError unless plan.json says what the manifest says."""
    if read_plan(cache_dir) != manifest.identity:
        raise RecordError(str(cache_dir / PLAN_NAME), f"differs from {MANIFEST_NAME}")


def check_commit(cache_dir: Path, record: ShardRecord) -> bytes:
    """The bytes of a shard's commit record; RecordError unless it is there and says what the manifest says."""
    key = record.key
    found = _read_commit(cache_dir, key)
    if found is None or found[0] != record:
        raise RecordError(str(cache_dir / key.commit_path), f"missing, or differs from {MANIFEST_NAME}")
    return found[1]


def write_manifest(cache_dir: Path, manifest: Manifest) -> None:
    """Publish manifest.json: from now on the cache is complete."""
    content = dataclasses.asdict(manifest.identity) | {
        "shards": [dataclasses.asdict(shard) for shard in manifest.shards],
        "files": [dataclasses.asdict(file) for file in manifest.files],
        "teacher_perplexity": {split: manifest.teacher_perplexity(split) for split in SPLITS},
        "teacher_entropy_nats": {split: manifest.teacher_entropy_nats(split) for split in SPLITS},
    }
    write_record(cache_dir / MANIFEST_NAME, _versioned() | content)


def read_manifest(cache_dir: Path) -> Manifest:
    """Read manifest.json; raises RecordError, FormatVersionError, MissingFileError or UnsafePathError."""
    path = safe_join(cache_dir, MANIFEST_NAME, str(cache_dir))
    content = _read_versioned(path)
    shards = tuple(_parse_shard(item, path) for item in _objects(content, "shards", path))
    files = tuple(_parse(FileRecord, item, path) for item in _objects(content, "files", path))
    if len({file.path for file in files}) < len(files):
        raise RecordError(str(path), "'files' has a path twice")
    means = {name: content.pop(name, None) for name in ("teacher_perplexity", "teacher_entropy_nats")}
    identity = _parse_identity(content, path)
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


def check_listed_files(manifest: Manifest, cache_dir: Path, where: str) -> None:
    """Refuse listed files that lead out of the directory, or take the place of a record, a shard or each other.

    For whoever writes what a stranger's manifest lists. Raises UnsafePathError or RecordError.
    """
    for shard in manifest.shards:
        safe_join(cache_dir, shard.path, where)
    taken: set[str] = set()
    for file in manifest.files:
        safe_join(cache_dir, file.path, where)
        folded = file.path.casefold()  # some disks take README.md and readme.md for one
        parts = folded.split("/")
        if parts[0] in _RESERVED or folded in taken or any(part.startswith(TEMPORARY_PREFIX) for part in parts):
            raise UnsafePathError(file.path, where)
        if file.file_bytes < 0 or _SHA256.fullmatch(file.sha256) is None:
            raise RecordError(where, f"the record of {file.path} has a negative size or a malformed sha256")
        taken.add(folded)


def _close(found: object, expected: dict[str, float | None]) -> bool:
    if not isinstance(found, dict) or found.keys() != expected.keys():
        return False
    return all(
        found[split] is None
        if wanted is None
        else type(found[split]) in (int, float)
        and (type(found[split]) is float or abs(found[split]) <= _LARGEST_INT)  # larger ones are no floats
        and math.isclose(found[split], wanted, rel_tol=1e-9)
        for split, wanted in expected.items()
    )


def _versioned() -> dict[str, Any]:
    return {"format": FORMAT_NAME, "format_version": FORMAT_VERSION}


def _read_versioned(path: Path) -> dict[str, Any]:
    content = read_record(path)
    if content.pop("format", None) != FORMAT_NAME:
        raise RecordError(str(path), f"'format' is not {FORMAT_NAME!r}")
    version = content.pop("format_version", None)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise RecordError(str(path), f"'format_version' is {version!r}")
    if version > FORMAT_VERSION:
        raise FormatVersionError(str(path), version, FORMAT_VERSION)
    return content


def _parse_identity(content: dict[str, Any], path: Path) -> CacheIdentity:
    identity = _parse(CacheIdentity, content, path)
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
    """The sources of a merged cache: which is which, each once, and together all of its shards."""
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


def _parse_shard(item: dict[str, Any], path: Path) -> ShardRecord:
    record = _parse(ShardRecord, item, path)
    parse_shard_path(record.path, str(path))
    counts = (record.first_row_id, record.num_rows, record.num_tokens, record.num_targets, record.shard_bytes)
    if min(counts) < 0 or _SHA256.fullmatch(record.sha256) is None:
        raise RecordError(str(path), f"the record of {record.path} has a negative count or a malformed sha256")
    if record.num_rows > _MAX_SHARD_ROWS:
        raise RecordError(str(path), f"{record.path} cannot hold {record.num_rows} rows")
    return record


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
        # The ids of sources begin alike, so that only the bytes tell whether their rows are the same.
        rows = (key.kind, key.split, shard.sha256)
        if shard.num_rows and rows in seen:
            raise RecordError(str(path), f"{shard.path} holds the rows of another shard")
        seen.add(rows)


def _objects(content: dict[str, Any], name: str, path: Path) -> list[dict[str, Any]]:
    items = content.pop(name, None)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise RecordError(str(path), f"{name!r} is not a list of objects")
    return items


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

_JSON_TYPES: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "str": str,
    "float": (int, float),
    "dict": dict,
    "tuple": list,
}


def _parse(record_class: type[Record], item: dict[str, Any], path: Path) -> Record:
    """Build a record from JSON, refusing missing, unknown and wrongly typed fields."""
    fields = _field_types(record_class)  # type: ignore[arg-type]
    if item.keys() != fields.keys():
        wrong = sorted(item.keys() ^ fields.keys())
        raise RecordError(str(path), f"missing or unknown keys {wrong}")
    for name, type_name in fields.items():
        value = item[name]
        if not isinstance(value, _JSON_TYPES[type_name]) or isinstance(value, bool):
            raise RecordError(str(path), f"{name!r} is {value!r:.60}, expected {type_name}")
        if isinstance(value, int) and abs(value) > _LARGEST_INT:
            raise RecordError(str(path), f"{name!r} is larger than any reader can hold")
    return record_class(**item)


@functools.cache
def _field_types(record_class: type) -> dict[str, str]:
    """Names of a record's fields and of their types, without what is in brackets."""
    return {field.name: str(field.type).partition("[")[0] for field in dataclasses.fields(record_class)}
