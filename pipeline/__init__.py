"""The teacher side: run a teacher once over a text and write a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.config import BeamsConfig, PrecomputeConfig, SamplesConfig, SoftTargetsConfig

if TYPE_CHECKING:
    from storage.cache import Cache

__all__ = ["BeamsConfig", "PrecomputeConfig", "SamplesConfig", "SoftTargetsConfig", "precompute"]


def precompute(config: PrecomputeConfig) -> Cache:
    """Run the teacher over the data and return the finished cache; a rerun resumes (see pipeline.job)."""
    from pipeline.job import precompute as run

    return run(config)
