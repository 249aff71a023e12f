"""How large a row may be by the settings that the cache states; who reads it allots memory by them.

Padding a batch to its widest row costs rows times width, so one wide row among many narrow ones would
cost far more memory than bytes of the file.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa

from storage.errors import RowError
from storage.records.identity import CacheIdentity
from storage.rows import columns


def check_limits(batch: pa.RecordBatch, kind: str, identity: CacheIdentity, where: str) -> None:
    """Raise RowError for a row that is larger than the settings of its kind allow; one not stated allows all."""
    settings = identity.config.get(kind, {})
    if kind == "soft_targets":
        limits = _most_entries(settings)
        sizes = {name: columns.fixed(batch, name) for name in limits}
    else:
        most_prompt = identity.data.get("longest_prompt_tokens", {}).get(kind)
        limits = {"prompt_ids": most_prompt, _CONTINUATIONS[kind]: settings.get("max_new_tokens")}
        sizes = {
            name: columns.ragged(batch, name)[0]
            if name == "candidate_lengths"
            else np.diff(columns.ragged_offsets(batch, name))
            for name in limits
        }
    for name, most in limits.items():
        if most is not None and np.any(sizes[name] > most):
            raise RowError(where, name, f"has {sizes[name].max()} tokens where the cache's settings allow {most}")


_CONTINUATIONS = {"samples": "completion_ids", "beams": "candidate_lengths"}


def _most_entries(settings: dict[str, Any]) -> dict[str, int]:
    """Most entries of a head and of a tail: at most 1/τ probabilities reach τ, and as many draws are made."""
    if not {"top_k", "tail_weight"} <= settings.keys():
        return {}
    tail_weight = settings["tail_weight"]
    most_drawn = 0 if tail_weight is None else math.floor(min(1 / tail_weight, 1 << 32)) + 1
    return {"head_size": max(settings["top_k"], most_drawn), "tail_size": most_drawn}
