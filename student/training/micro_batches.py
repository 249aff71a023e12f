"""Blocks per step when --batch-blocks is auto, and the number of micro-batches that fits into memory."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from storage.errors import RecordError
from storage.reading.cache import Cache
from storage.records.records import read_record, write_record
from student.config import TrainConfig
from student.processes import Processes

MICRO_BATCHES_NAME = "micro_batches.json"
_TOKENS_PER_STEP = 16_384


def with_batch_blocks(config: TrainConfig, cache: Cache) -> TrainConfig:
    """Return the settings with a number of blocks in place of "auto".

    The number depends on the cache's block size and not on the machine's memory, so that a run has the same result on
    every machine. A step that does not fit into memory is cut into more micro-batches.
    """
    if config.batch_blocks != "auto":
        return config
    return dataclasses.replace(config, batch_blocks=max(1, _TOKENS_PER_STEP // cache.identity.block_size))


def remember_micro_batches(out: Path, micro_batches: int) -> None:
    """Write the number of micro-batches for later starts of the run at `out`; raises WriteRefusedError."""
    write_record(out / MICRO_BATCHES_NAME, {"micro_batches": micro_batches})


def with_remembered_micro_batches(config: TrainConfig, processes: Processes) -> TrainConfig:
    """Return the settings with at least as many micro-batches as an earlier start of the run needed.

    Raises RecordError when the file that says so is damaged.
    """
    path = config.out / MICRO_BATCHES_NAME
    found = read_record(path).get("micro_batches") if path.is_file() else 1
    if type(found) is not int:
        raise RecordError(str(path), "states no number of micro-batches")
    if found <= config.micro_batches:
        return config
    if processes.is_first:
        print(f"going on with {found} micro-batches, for memory ran out before", file=sys.stderr)
    return dataclasses.replace(config, micro_batches=found)
