"""The teacher side: run a teacher once over a text and write a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.config import BeamsConfig, PrecomputeConfig, SamplesConfig, SoftTargetsConfig

if TYPE_CHECKING:
    from storage.records.manifest import Manifest

__all__ = ["BeamsConfig", "PrecomputeConfig", "SamplesConfig", "SoftTargetsConfig", "precompute"]


def precompute(config: PrecomputeConfig) -> Manifest:
    """Run the teacher over the data, write the cache and return its manifest. A rerun resumes (see pipeline.run)."""
    from pipeline.run import precompute as run

    return run(config)
