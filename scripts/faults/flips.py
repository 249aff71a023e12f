"""Flip bits in a finished cache and truncate its files. Verification and reading must find every damage."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.faults.regions import Spans, arrow_regions, json_regions, whole
from scripts.faults.tally import Tally
from scripts.faults.time_limit import StillBusy, time_limit
from storage.errors import CacheError, MissingKindError
from storage.reading.cache import Cache, open_cache
from storage.reading.verification import verify_cache
from storage.records.commits import read_commit, read_plan
from storage.records.identity import PLAN_NAME, SPLITS, ShardRecord
from storage.records.manifest import MANIFEST_NAME
from storage.rows.kinds import KINDS
from storage.shards.shard import check_file

_HUNG_AFTER_S = 20
_TRUNCATED_EVERY_BYTES = 64


@dataclass(frozen=True, kw_only=True)
class Victim:
    """A file of a cache to damage.

    spans: the byte ranges of its regions; find: checks this file alone, and raises a CacheError or returns False when
    it is damaged; is_read: whether reading the cache reads the file.
    """

    path: Path
    what: str
    spans: Spans
    find: Callable[[], bool]
    is_read: bool


def victims_of(cache_dir: Path) -> list[Victim]:
    """Return all files of a finished cache."""
    cache = open_cache(cache_dir)
    found = [
        _victim(
            cache_dir / MANIFEST_NAME,
            "manifest",
            json_regions,
            lambda: open_cache(cache_dir).manifest == cache.manifest,
            True,
        ),
        _victim(cache_dir / PLAN_NAME, "plan", json_regions, lambda: read_plan(cache_dir) == cache.identity),
    ]
    for record in cache.manifest.shards:
        found.append(_shard_victim(cache, record))
        found.append(_commit_victim(cache, record))
    for file in cache.manifest.files:
        what = "tokenizer" if file.path.startswith("tokenizer/") else "card"
        found.append(
            _victim(cache_dir / file.path, what, whole, lambda file=file: bool(check_file(cache_dir, file)))  # type: ignore[misc]
        )
    return found


def flip_bits(cache_dir: Path, num_flips: int, rng: random.Random, tally: Tally, *, whole_every: int) -> None:
    """Flip single bits, spread evenly over kinds of files and their regions, and restore each.

    Each damaged file is checked alone. For every whole_every-th flip the whole cache is verified and read as well.
    """
    strata: dict[tuple[str, str], list[Victim]] = {}
    for victim in victims_of(cache_dir):
        for region in victim.spans:
            strata.setdefault((victim.what, region), []).append(victim)
    places = sorted(strata)
    for number in range(num_flips):
        what, region = places[number % len(places)]
        victim = rng.choice(strata[what, region])
        position = _random_position(victim.spans[region], rng)
        bit = rng.randrange(8)
        pristine = victim.path.read_bytes()
        # Shift the whole checks by one stratum in each round, so that every stratum gets its share of them.
        is_whole = (number + number // len(places)) % whole_every == 0
        with _replaced_byte(victim.path, position, pristine[position] ^ (1 << bit)):
            problem = undetected(cache_dir, victim, is_whole=is_whole)
        where = f"{victim.path.name}, bit {bit} of byte {position}: "
        tally.add("flipped bit", f"{what}, {region}", None if problem is None else where + problem)


def truncate(cache_dir: Path, tally: Tally) -> None:
    """Truncate a shard of each kind, a commit record, plan and manifest at every 64 bytes, and restore each."""
    seen: set[str] = set()
    for victim in victims_of(cache_dir):
        if victim.what in seen or victim.what in ("tokenizer", "card"):
            continue
        seen.add(victim.what)
        pristine = victim.path.read_bytes()
        try:
            for kept in range(0, len(pristine), _TRUNCATED_EVERY_BYTES):
                victim.path.write_bytes(pristine[:kept])
                problem = undetected(cache_dir, victim, is_whole=kept == 0)
                detail = None if problem is None else f"{victim.path.name}, cut to {kept} bytes: {problem}"
                tally.add("truncated", victim.what, detail)
        finally:
            victim.path.write_bytes(pristine)


def undetected(cache_dir: Path, victim: Victim, *, is_whole: bool) -> str | None:
    """Name the check that did not report the damage. Return None when all checks reported it."""
    checks: list[tuple[str, Callable[[], bool]]] = [("a check of the file alone", victim.find)]
    if is_whole:
        checks.append(("verify_cache", lambda: not verify_cache(cache_dir).problems))
        if victim.is_read:
            checks.append(("reading the cache", lambda: read_everything(cache_dir) >= 0))
    for name, passes in checks:
        try:
            with time_limit(_HUNG_AFTER_S):
                if passes():
                    return f"{name} found nothing"
        except CacheError:
            continue
        except (Exception, StillBusy) as error:  # a user would see a crash or a hang
            return f"{name} raised {error!r}"
    return None


def read_everything(cache_dir: Path) -> int:
    """Read all rows and return their number. Raises CacheError for damage."""
    cache = open_cache(cache_dir)
    num_rows = 0
    for kind in KINDS:
        for split in SPLITS:
            with contextlib.suppress(MissingKindError):
                num_rows += sum(batch.num_rows for batch in cache.record_batches(kind, split))
    return num_rows


def _victim(
    path: Path, what: str, layout: Callable[[bytes], Spans], find: Callable[[], bool], is_read: bool = False
) -> Victim:
    return Victim(path=path, what=what, spans=layout(path.read_bytes()), find=find, is_read=is_read)


def _shard_victim(cache: Cache, record: ShardRecord) -> Victim:
    def find() -> bool:
        with contextlib.suppress(CacheError):
            open_cache(cache.path).open_shard(record)
            return True
        return bool(check_file(cache.path, record))

    what = f"{record.key.kind} shard"
    return _victim(cache.path / record.path, what, arrow_regions, find, is_read=True)


def _commit_victim(cache: Cache, record: ShardRecord) -> Victim:
    path = cache.path / record.key.commit_path
    return _victim(path, "commit record", json_regions, lambda: read_commit(cache.path, record.key) == record)


def _random_position(spans: list[range], rng: random.Random) -> int:
    [span] = rng.choices(spans, weights=[len(span) for span in spans])
    return rng.choice(span)


@contextlib.contextmanager
def _replaced_byte(path: Path, position: int, value: int) -> Iterator[None]:
    with path.open("r+b", buffering=0) as file:
        file.seek(position)
        pristine = file.read(1)
        file.seek(position)
        file.write(bytes([value]))
        try:
            yield
        finally:
            file.seek(position)
            file.write(pristine)
