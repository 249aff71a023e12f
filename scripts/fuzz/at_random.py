"""Fuzz with random mutations of good inputs, without guidance."""

from __future__ import annotations

import random
import time
from pathlib import Path

from scripts.fuzz.config import FuzzConfig, Report, copy_cache
from scripts.fuzz.targets import make_target, sha256_of
from scripts.fuzz.worker import FuzzFailureError, Worker


def fuzz(config: FuzzConfig, work: Path) -> Report:
    """Read mutated inputs until one fails or the time is up."""
    rng, report = random.Random(config.seed), Report()
    target = make_target(config.target, copy_cache(config.cache, work / "seeds"))
    worker = Worker(config.target, copy_cache(config.cache, work / "cache"))
    end = time.monotonic() + config.seconds
    try:
        while time.monotonic() < end:
            data = target.mutate(rng.choice(target.seeds), rng)
            report.num_inputs += 1
            try:
                report.outcomes[worker.run(data)] += 1
            except FuzzFailureError as error:
                report.failure = f"{_keep(config, data)}: {error}"
                break
    finally:
        worker.close()
    return report


def _keep(config: FuzzConfig, data: bytes) -> Path:
    config.failures.mkdir(parents=True, exist_ok=True)
    path = config.failures / f"{config.target}-{sha256_of(data)[:16]}"
    path.write_bytes(data)
    return path
