"""Compare a run with the plan.json of a cache: the whole plan, or the facts that are known so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from storage.errors import CacheMismatchError
from storage.records.identity import CacheIdentity
from storage.records.settings import flatten
from storage.rows.kinds import KINDS


def require_same_plan(where: str, begun: CacheIdentity, identity: CacheIdentity) -> None:
    """Raise CacheMismatchError when the plan at `where` differs from `identity` in anything but software versions."""
    found, wanted = (flatten(dataclasses.asdict(i) | {"software": {}}) for i in (begun, identity))
    _require_same(where, found, wanted, found.keys() | wanted.keys())


def require_same_facts(where: str, begun: CacheIdentity, facts: dict[str, Any]) -> None:
    """Raise CacheMismatchError when the plan at `where` differs from `facts`.

    facts: some fields of an identity, nested as there. `facts["config"]` must be complete, because the kinds that it
    configures are compared.
    """
    wanted = flatten(facts)
    _require_same(where, flatten(dataclasses.asdict(begun)), wanted, wanted.keys())


def _require_same(where: str, found: dict[str, Any], wanted: dict[str, Any], fields: Iterable[str]) -> None:
    """Raise CacheMismatchError for the first of `fields` in which two flat identities differ.

    Compare the kinds first: with different kinds, every setting of a kind would differ.
    """
    kinds = [
        [kind for kind in KINDS if any(name.startswith(f"config.{kind}.") for name in flat)] for flat in (found, wanted)
    ]
    if kinds[0] != kinds[1]:
        raise CacheMismatchError(where, "kinds", *kinds)
    for field in sorted(fields):
        if found.get(field) != wanted.get(field):
            raise CacheMismatchError(where, field, found.get(field), wanted.get(field))
