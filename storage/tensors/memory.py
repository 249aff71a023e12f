"""Recognise errors of PyTorch that mean out of memory."""

from __future__ import annotations

import torch


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether PyTorch raised `error` because it could not allocate memory, on a GPU or on the host."""
    said = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in said)
