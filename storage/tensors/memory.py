"""The host's memory: keep what is freed, and recognise errors of PyTorch that mean that there is no more."""

from __future__ import annotations

import ctypes
import sys

import torch

# Parameters of mallopt(3), and values for them: keep all memory that is freed, and blocks of up to 1 GiB among it.
_TRIM_THRESHOLD, _NEVER = -1, -1
_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES = -3, 1 << 30


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees for its next allocations. This works with glibc and is for CPUs.

    Otherwise glibc gives every block above 32 MB back to the system, which clears each page before it gives it out
    again. The logits and gradients of a large vocabulary are such blocks, freed and allocated in every step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _NEVER)
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether PyTorch raised `error` because it could not allocate memory, on a GPU or on the host."""
    said = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in said)
