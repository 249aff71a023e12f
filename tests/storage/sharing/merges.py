"""Caches to be merged, and what a merged one must hold."""

from __future__ import annotations

import copy
import hashlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage import open_cache, verify_cache
from storage.reading.cache import Cache
from storage.records.identity import SPLITS
from storage.rows.kinds import KINDS

CONFIG = {
    "block_size": 6,
    "seed": 0,
    "max_tokens": None,
    "soft_targets": {"top_k": 3, "tail_weight": 0.25},
    "samples": {"per_prompt": 2, "num_prompts": 3, "prompt_column": None},
    "beams": {"length_penalty": 1.0, "num_prompts": 3},
}
SHARED_CONFIG = {
    "block_size": 6,
    "soft_targets": {"top_k": 3, "tail_weight": 0.25},
    "samples": {"per_prompt": 2},
    "beams": {"length_penalty": 1.0},
}
SIZES = {
    "a": {"soft_targets": {"train": [8, 7], "validation": [3]}, "samples": {"train": [4, 2]}, "beams": {"train": [5]}},
    "b": {"soft_targets": {"train": [4, 1]}, "samples": {"train": [6]}, "beams": {"train": [2], "validation": [1]}},
    "c": {"soft_targets": {"train": [9], "validation": [4, 4]}, "samples": {}, "beams": {"train": [4, 1]}},
}
FEW = {"soft_targets": {"train": [1]}}

Build = Callable[..., Path]


def data_of(name: str, **changes: object) -> dict[str, Any]:
    """What a cache of the text `name` says about its data."""
    facts: dict[str, Any] = {
        "source": f"{name}.txt",
        "fingerprint": hashlib.sha256(name.encode()).hexdigest(),
        "licence": "mit",
        "packing": "end to end",
        "num_documents": 10 + ord(name[0]),
        "num_tokens": {"train": 100, "validation": ord(name[0])},
        "longest_prompt_tokens": {"samples": 10 + ord(name[0]) % 7, "beams": 13},
    }
    return facts | changes


def config_with(path: str, value: object) -> dict[str, Any]:
    """CONFIG with the setting at a dotted path changed."""
    config: dict[str, Any] = copy.deepcopy(CONFIG)
    *sections, name = path.split(".")
    inner = config
    for section in sections:
        inner = inner[section]
    inner[name] = value
    return config


def refusing(error_number: int) -> Callable[..., None]:
    """What the operating system does when it refuses."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(error_number, os.strerror(error_number))

    return refuse


def rows_of(cache: Cache, kind: str, split: str) -> pa.Table:
    batches = cache.record_batches(kind, split) if cache.num_rows(kind, split) else []
    return pa.Table.from_batches(batches, schema=cache.identity.schema(kind))


def assert_holds(merged: Path, sources: list[Path]) -> None:
    """The merged cache is whole and holds the sources' rows one after the other."""
    assert verify_cache(merged).problems == ()
    caches = [open_cache(source) for source in sources]
    for kind, split in itertools.product(KINDS, SPLITS):
        expected = pa.concat_tables([rows_of(cache, kind, split) for cache in caches])
        assert rows_of(open_cache(merged), kind, split).equals(expected), (kind, split)
