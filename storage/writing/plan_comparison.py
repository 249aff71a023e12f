"""Whether a run belongs to the cache that was begun: its plan, or what is known of it so far, against plan.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from storage.errors import CacheMismatchError
from storage.records.identity import CacheIdentity
from storage.rows.kinds import KINDS


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


def flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dictionary with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


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
