"""Merge finished caches that one teacher wrote for different data, without encoding any row again.

Shards keep their bytes, and so their row ids, which count from 0 in each source. In the merged cache a source and a
row_id together name a row (storage/FORMAT.md, "Merged caches").
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from storage.disk.directories import remove_leftovers
from storage.errors import ConfigError, MergeError
from storage.reading.cache import Cache, open_cache
from storage.records.identity import SPLITS, CacheIdentity, ShardRecord
from storage.records.settings import flatten
from storage.rows.kinds import KINDS
from storage.shards.shard import check_file
from storage.sharing.tokenizer_copy import copy_tokenizer
from storage.writing.directory_destination import DirectoryDestination

# Settings that may differ between sources: which text, how much of it, and the seed. All other settings decide what a
# row means and must agree.
SETTINGS_OF_DATA = (
    "completion_column",
    "document_separator",
    "max_tokens",
    "messages_column",
    "on_bad_row",
    "prompt_column",
    "seed",
    "shard_tokens",
    "text_column",
    "validation_fraction",
)
# Those of a kind: its prompts, and how finely values are rounded that no reader needs to know the rounding of.
SETTINGS_OF_KINDS = ("num_prompts", "prompt_column", "scalar_mantissa_bits")
_DOCUMENT_COUNTS = ("num_documents", "num_documents_skipped", "num_prompts_skipped", "num_bad_rows")
# Facts about a teacher that may differ, because the same weights can be loaded from another place.
_NAMES_OF_TEACHER = ("id", "revision")


def merge(caches: Sequence[Path], out: Path, progress: Callable[[int], object] = lambda num_bytes: None) -> Cache:
    """Merge finished caches into one at `out`; return it opened.

    Shards are hard links to the files of the sources where the file system allows that, otherwise copies. If this
    function is killed, call it again to resume. A source that is a merged cache counts as the sources that it was
    merged from. `progress` receives the bytes of each shard once it is in place.

    Raise ConfigError for fewer than two caches, or when `out` is one of them or holds something that is not a cache;
    CacheMismatchError when `out` is a different cache; MergeError for caches that do not belong together;
    HashMismatchError or MissingFileError for a damaged cache; the errors of open_cache for an unfinished one;
    WriteRefusedError when a write fails.
    """
    if len(caches) < 2:
        raise ConfigError(f"merge was given {len(caches)} caches, expected two or more")
    opened = [open_cache(path) for path in caches]
    if out.exists() and any(out.samefile(path) for path in caches):
        raise ConfigError(f"--out {out}: is one of the caches itself; name another directory")
    for one, other in itertools.combinations(opened, 2):
        _require_alike(one, other)
    _require_different_data(opened)
    destination = DirectoryDestination(out)
    destination.require_own()
    identity = destination.begin_or_resume(_merged_identity([cache.identity for cache in opened]))
    tokenizer_files = copy_tokenizer(opened[0], destination)
    for cache in opened[1:]:
        for file in cache.manifest.files:
            check_file(cache.path, file)
    for key, (cache, record) in zip(identity.planned_keys(), _shards_in_order(opened), strict=True):
        if destination.read_commit(key) is None:
            destination.add_shard_file(check_file(cache.path, record), dataclasses.replace(record, path=key.path))
        progress(record.shard_bytes)
    destination.finish(identity, tokenizer_files)
    remove_leftovers(out)
    return open_cache(out)


def _require_alike(one: Cache, other: Cache) -> None:
    """Raise MergeError when rows of the two caches differ in meaning."""
    kinds = [kind for kind in KINDS if kind in one.identity.config and kind in other.identity.config]
    wanted, found = (_meaning(cache.identity, kinds) for cache in (one, other))
    for field in wanted | found:
        if found.get(field) != wanted.get(field):
            raise MergeError(str(other.path), field, found.get(field), wanted.get(field))


def _meaning(identity: CacheIdentity, kinds: Sequence[str]) -> dict[str, Any]:
    """Return the fields that caches must agree on, with dotted names.

    Left out: the teacher's id and revision, software, all of `data` except packing, settings of data and prompts, how
    finely scalars are rounded, and settings of kinds that are not in `kinds`.
    """
    settings = {n: value for n, value in _shared_settings(identity.config).items() if n not in KINDS or n in kinds}
    return flatten(
        {
            "teacher": _without(identity.teacher, _NAMES_OF_TEACHER),
            "tokenizer": identity.tokenizer,
            "vocab_size": identity.vocab_size,
            "block_size": identity.block_size,
            "record_batch_rows": identity.record_batch_rows,
            "temperatures": identity.temperatures,
            "config": settings,
            "data": {"packing": identity.data.get("packing")},
        }
    )


def _shared_settings(config: dict[str, Any]) -> dict[str, Any]:
    return {n: _without(value, SETTINGS_OF_KINDS) for n, value in _without(config, SETTINGS_OF_DATA).items()}


def _without(settings: Any, names: Iterable[str]) -> Any:
    return {n: value for n, value in settings.items() if n not in names} if isinstance(settings, dict) else settings


def _require_different_data(caches: Sequence[Cache]) -> None:
    """Raise MergeError when two caches hold the same data or the same rows."""
    holder: dict[tuple[str, str], Cache] = {}
    for cache in caches:
        for field, found in _marks_of_data(cache):
            other = holder.setdefault((field, found), cache)
            if other is not cache:
                wanted = f"other data than in {other.path}{_about_seeds(other, cache, found)}"
                raise MergeError(str(cache.path), field, found, wanted)


def _about_seeds(one: Cache, other: Cache, fingerprint: str) -> str:
    """Return what to say of two caches of the same data with different seeds; nothing for equal seeds."""
    there, here = (
        [source["config"].get("seed") for source in _sources(cache.identity) if source["fingerprint"] == fingerprint]
        for cache in (one, other)
    )
    if there == here:
        return ""
    return (
        f": it is the same text with seed {here[0]} instead of {there[0]}; to draw more from one text, make one cache "
        "with a larger --samples.per-prompt"
    )


def _marks_of_data(cache: Cache) -> Iterator[tuple[str, str]]:
    """Yield (field, value) pairs that no two caches may share: fingerprints of data, sha256 of shards with rows."""
    for source in _sources(cache.identity):
        fingerprint = source.get("fingerprint")
        if not isinstance(fingerprint, str):
            raise MergeError(str(cache.path), "data.fingerprint", fingerprint, "the hash of its data")
        yield "data.fingerprint", fingerprint
    for record in cache.manifest.shards:
        if record.num_rows:
            yield f"sha256 of a {record.key.kind} {record.key.split} shard", record.sha256


def _sources(identity: CacheIdentity) -> list[dict[str, Any]]:
    """Return a merged cache's data["sources"]; for any other cache, the one entry that it would be there."""
    own = {"config": identity.config, "software": identity.software, "planned_shards": identity.planned_shards}
    sources: list[dict[str, Any]] = identity.data.get("sources", [identity.data | own])
    return sources


def _merged_identity(identities: Sequence[CacheIdentity]) -> CacheIdentity:
    sources = [source for identity in identities for source in _sources(identity)]
    names = _distinct(name for source in sources for name in source["software"])
    return dataclasses.replace(
        identities[0],
        data=_merged_data(sources),
        config={n: value for source in sources for n, value in _shared_settings(source["config"]).items()},
        software={
            name: ", ".join(_distinct(str(s["software"][name]) for s in sources if name in s["software"]))
            for name in names
        },
        planned_shards=_added_shards(sources),
    )


def _merged_data(sources: list[dict[str, Any]]) -> dict[str, Any]:
    lines = "".join(f"{source['fingerprint']}\n" for source in sources)
    licences = _distinct(source.get("licence") for source in sources)
    documents = ({name: source[name] for name in _DOCUMENT_COUNTS if name in source} for source in sources)
    return {
        "source": " + ".join(source["source"] for source in sources),
        "fingerprint": hashlib.sha256(lines.encode()).hexdigest(),
        "licence": licences[0] if len(licences) == 1 else licences if all(licences) else None,
        "packing": sources[0].get("packing"),
        **_combined(documents, sum),
        "num_tokens": _combined((source.get("num_tokens") for source in sources), sum),
        "longest_prompt_tokens": _combined((source.get("longest_prompt_tokens") for source in sources), max),
        "sources": sources,
    }


def _combined(parts: Iterable[object], combine: Callable[[list[int]], int]) -> dict[str, int]:
    """Combine the integers of several dictionaries name by name; leave out all other values."""
    by_name: dict[str, list[int]] = {}
    for part in parts:
        for name, count in part.items() if isinstance(part, dict) else ():
            if type(count) is int:
                by_name.setdefault(name, []).append(count)
    return {name: combine(counts) for name, counts in by_name.items()}


def _added_shards(sources: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    planned = [source["planned_shards"] for source in sources]
    return {
        kind: {split: sum(part.get(kind, {}).get(split, 0) for part in planned) for split in SPLITS}
        for kind in KINDS
        if any(kind in part for part in planned)
    }


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Return each value once, in order of first appearance; values need not be hashable."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def _shards_in_order(caches: Sequence[Cache]) -> Iterator[tuple[Cache, ShardRecord]]:
    """Yield every shard of every cache, in the order of the merged cache."""
    for kind, split in itertools.product(KINDS, SPLITS):
        for cache in caches:
            for record in cache.manifest.shards_of(kind, split):
                yield cache, record
