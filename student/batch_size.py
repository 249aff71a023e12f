"""How many blocks a step holds when --batch-blocks is auto, and whether a device has run out of memory."""

from __future__ import annotations

import dataclasses

import torch

from storage.cache import Cache
from student.config import TrainConfig

_TOKENS_PER_STEP = 16_384


def with_batch_blocks(config: TrainConfig, cache: Cache) -> TrainConfig:
    """The settings with a number in place of "auto".

    It depends on the cache's block size and not on the memory at hand, so that a run has the same result on every
    machine; what does not fit into memory goes through it in more micro-batches.
    """
    if config.batch_blocks != "auto":
        return config
    return dataclasses.replace(config, batch_blocks=max(1, _TOKENS_PER_STEP // cache.identity.block_size))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch could not allocate, on a GPU or on the host."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
