"""A record's fields, and JSON values that do not fit them."""

from __future__ import annotations

import dataclasses
from typing import Any

JSON_VALUES: list[Any] = [None, True, "x", 1.5, [], {}]
FITTING = {"int": (), "str": ("x",), "float": (1.5,), "dict": ({},), "tuple": ()}


def wrong_values(record_class: type) -> list[tuple[str, Any]]:
    """Each field with each JSON value of another type."""
    kinds = {field.name: str(field.type).partition("[")[0] for field in dataclasses.fields(record_class)}
    return [
        (name, value)
        for name, kind in kinds.items()
        for value in JSON_VALUES
        if not any(value is fit or (type(value) is type(fit) and value == fit) for fit in FITTING[kind])
    ]


def names(record_class: type) -> list[str]:
    return [field.name for field in dataclasses.fields(record_class)]


def first_shard(manifest: dict[str, Any]) -> dict[str, Any]:
    shard: dict[str, Any] = manifest["shards"][0]
    return shard
