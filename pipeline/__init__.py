"""The teacher side: run a teacher once over a text and write a cache, or cut a beginning for students out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.config import BeamsConfig, PrecomputeConfig, SamplesConfig, SoftTargetsConfig
from pipeline.cutting.config import CutConfig
from pipeline.cutting.record import CutRecord

if TYPE_CHECKING:
    from storage.records.manifest import Manifest

__all__ = [
    "BeamsConfig",
    "CutConfig",
    "CutRecord",
    "PrecomputeConfig",
    "SamplesConfig",
    "SoftTargetsConfig",
    "cut",
    "precompute",
]


def precompute(config: PrecomputeConfig) -> Manifest:
    """Run the teacher over the data, write the cache and return its manifest. A rerun resumes (see pipeline.run)."""
    from pipeline.run import precompute as run

    return run(config)


def cut(config: CutConfig) -> CutRecord:
    """Cut a smaller model out of a teacher and return the record of what was kept (see pipeline.cutting.cut)."""
    from pipeline.cutting.cut import cut as run

    return run(config)
