"""Caches made by a run of precompute."""

from __future__ import annotations

from pipeline import PrecomputeConfig, precompute
from storage import Cache, open_cache


def precomputed(config: PrecomputeConfig) -> Cache:
    """Run precompute to a directory, and open what it made."""
    precompute(config)
    return open_cache(config.out)
