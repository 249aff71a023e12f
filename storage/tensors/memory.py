"""The host's memory: keep what is freed, and recognise errors of PyTorch that mean that there is no more."""

from __future__ import annotations

import ctypes
import sys

import torch

# Parameters of mallopt(3), and values for them: keep all memory that is freed, with blocks of up to 1 GiB, or of up to
# 32 MiB, the most that glibc before 2.35 takes. A thread's memory comes in heaps of 64 MiB; keep empty ones too.
_TRIM_THRESHOLD, _NEVER = -1, -1
_TOP_PAD, _HEAP_BYTES = -2, 1 << 26
_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES = -3, (1 << 30, 1 << 25)


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees for its next allocations, from now on. Only glibc is told so.

    On a CPU this is faster: otherwise glibc gives every block above 32 MiB back to the system, which clears each page
    before it gives it out again. The logits and gradients of a large vocabulary are such blocks, freed and allocated in
    every step. It also gives back heaps of a thread when all in them is freed, as happens with a stream's windows.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    # mallopt returns 1 when it did as told. The other threshold alone would do harm: once either is set, glibc no
    # longer raises this one from its first 128 KiB.
    if mallopt is not None and any(mallopt(_MMAP_THRESHOLD, num_bytes) for num_bytes in _LARGEST_KEPT_BYTES):
        mallopt(_TRIM_THRESHOLD, _NEVER)
        mallopt(_TOP_PAD, _HEAP_BYTES)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether PyTorch raised `error` because it could not allocate memory, on a GPU or on the host."""
    said = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in said)
