"""How many blocks a step holds when --batch-blocks is auto, and into how many parts memory makes it be cut."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from storage.reading.cache import Cache
from storage.records.records import read_record, write_record
from student.config import TrainConfig
from student.processes import Processes

MICRO_BATCHES_NAME = "micro_batches.json"
_TOKENS_PER_STEP = 16_384


def with_batch_blocks(config: TrainConfig, cache: Cache) -> TrainConfig:
    """The settings with a number in place of "auto".

    It depends on the cache's block size and not on the memory at hand, so that a run has the same result on every
    machine; what does not fit into memory goes through it in more micro-batches.
    """
    if config.batch_blocks != "auto":
        return config
    return dataclasses.replace(config, batch_blocks=max(1, _TOKENS_PER_STEP // cache.identity.block_size))


def remember_micro_batches(out: Path, micro_batches: int) -> None:
    """Let later starts of the run at `out` begin with so many micro-batches; raises WriteRefusedError."""
    write_record(out / MICRO_BATCHES_NAME, {"micro_batches": micro_batches})


def with_remembered_micro_batches(config: TrainConfig, processes: Processes) -> TrainConfig:
    """The settings with at least as many micro-batches as an earlier start of the run needed; raises RecordError."""
    path = config.out / MICRO_BATCHES_NAME
    found = int(read_record(path)["micro_batches"]) if path.is_file() else 1
    if found <= config.micro_batches:
        return config
    if processes.is_first:
        print(f"going on with {found} micro-batches, for memory ran out before", file=sys.stderr)
    return dataclasses.replace(config, micro_batches=found)
