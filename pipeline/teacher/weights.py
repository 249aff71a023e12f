"""Hash the weights of a teacher, of which some may be on disk."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn


def hash_weights(model: nn.Module) -> str:
    """Return the hex sha256 of the names, dtypes, shapes and bytes of all parameters and buffers.

    Weights that accelerate keeps on disk or apart are read one after another.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = _resident(model, name, tensor)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def _resident(model: nn.Module, name: str, tensor: Tensor) -> Any:
    """Return a tensor of the model's state, read from disk or memory if it is on the meta device."""
    if not tensor.is_meta:
        return tensor
    from transformers.integrations.accelerate import load_offloaded_parameter

    return load_offloaded_parameter(model, name)
