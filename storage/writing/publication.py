"""How a cache comes to be on a disk: its plan first, and its card and manifest when every shard is committed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from storage.disk.files import TEMPORARY_PREFIX, safe_join, write_file, write_unless_equal
from storage.disk.hashing import sha256_file
from storage.errors import CacheMismatchError, ConfigError, IncompleteCacheError
from storage.reading.cache import TOKENIZER_DIR, Cache
from storage.records.commits import read_held_commit, read_plan, write_plan
from storage.records.dataset_card import dataset_card
from storage.records.identity import PLAN_NAME, CacheIdentity, FileRecord, ShardRecord
from storage.records.manifest import CARD_NAME, MANIFEST_NAME, Manifest, write_manifest
from storage.rows.kinds import KINDS
from storage.shards.shard import check_file

WORK_DIR = ".work"


def require_own_directory(out: Path) -> None:
    """Raise ConfigError unless `out` is a cache, begun or finished, or a place where one can be begun."""
    if out.is_dir() and not (out / PLAN_NAME).exists() and not (out / MANIFEST_NAME).exists():
        ours = (WORK_DIR, TEMPORARY_PREFIX)
        strangers = [path.name for path in out.iterdir() if not path.name.startswith(ours)]
        if strangers:
            raise ConfigError(
                f"--out {out}: not empty and not a cache (found {strangers[0]!r}); name another directory"
            )
    elif out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: not a directory")


def begin_or_resume(out: Path, identity: CacheIdentity) -> CacheIdentity:
    """Write the plan of a new cache, or check that this run is the one that began it.

    Software versions may differ: a cache is finished by whoever has its teacher and data. Returns the
    plan as it was begun; raises CacheMismatchError when it is another one.
    """
    if not (out / PLAN_NAME).exists():
        write_plan(out, identity, if_taken="drop")
    begun = read_plan(out)  # perhaps of a run that began at the same time
    require_same_plan(str(out), begun, identity)
    return begun


def require_same_plan(where: str, begun: CacheIdentity, identity: CacheIdentity) -> None:
    """Raise CacheMismatchError unless the cache begun at `where` is the wanted one, whatever software began it."""
    found, wanted = (flatten(dataclasses.asdict(i) | {"software": {}}) for i in (begun, identity))
    _require_same(where, found, wanted, found.keys() | wanted.keys())


def require_same_facts(where: str, begun: CacheIdentity, facts: dict[str, Any]) -> None:
    """Raise CacheMismatchError when the plan at `where` says otherwise than `facts`: some of an identity, nested alike.

    All of facts["config"] has to be there.
    """
    wanted = flatten(facts)
    _require_same(where, flatten(dataclasses.asdict(begun)), wanted, wanted.keys())


def _require_same(where: str, found: dict[str, Any], wanted: dict[str, Any], fields: Iterable[str]) -> None:
    """Compare flat identities in some fields; of other kinds, every setting would differ."""
    kinds = [
        [kind for kind in KINDS if any(name.startswith(f"config.{kind}.") for name in flat)] for flat in (found, wanted)
    ]
    if kinds[0] != kinds[1]:
        raise CacheMismatchError(where, "kinds", *kinds)
    for field in sorted(fields):
        if found.get(field) != wanted.get(field):
            raise CacheMismatchError(where, field, found.get(field), wanted.get(field))


def copy_tokenizer(cache: Cache, out: Path) -> list[str]:
    """Check the files of `cache` that are no shards and publish its tokenizer at `out`; its paths in the cache."""
    names = []
    for file in cache.manifest.files:
        source = check_file(cache.path, file)
        if file.path.startswith(f"{TOKENIZER_DIR}/"):
            names.append(file.path)
            copy = safe_join(out, file.path, str(out))
            write_unless_equal(copy, source.read_bytes())
    return names


def finish(out: Path, identity: CacheIdentity, tokenizer_files: list[str]) -> Manifest:
    """Join what is committed on disk, whoever committed it, and the tokenizer's files (paths in the cache).

    Raises IncompleteCacheError when the system shows fewer commit records, with their shards, than are planned.
    """
    planned = identity.planned_keys()
    records = [record for key in planned if (record := read_held_commit(out, key)) is not None]
    if len(records) < len(planned):
        raise IncompleteCacheError(str(out), len(records), len(planned))
    return describe(out, identity, records, tokenizer_files)


def describe(
    out: Path, identity: CacheIdentity, records: Sequence[ShardRecord], tokenizer_files: Sequence[str]
) -> Manifest:
    """Write the card and the manifest of a cache with these shards beside its tokenizer's files."""
    write_file(out / CARD_NAME, dataset_card(identity, tuple(records)).encode())
    files = tuple(file_record(out, name) for name in [CARD_NAME, *sorted(tokenizer_files)])
    manifest = Manifest(identity=identity, shards=tuple(records), files=files)
    write_manifest(out, manifest)
    return manifest


def file_record(out: Path, name: str) -> FileRecord:
    """What the manifest says of a file that is no shard."""
    return FileRecord(path=name, file_bytes=(out / name).stat().st_size, sha256=sha256_file(out / name))


def flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dictionary with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
