"""The weights of a teacher: their hash, and their number format in passes."""

from __future__ import annotations

import hashlib
import re
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


def convert_weights(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Move a model to a device and give its weights a number format, as from_pretrained does it.

    Tensors that are computed when the model is made, such as the frequencies of rotary positions, keep their format:
    in bfloat16 they are wrong by 1/256, which turns far positions by radians. So do parts that their makers keep in
    float32.
    """
    computed = [
        (module, name, module.get_buffer(name))
        for module in model.modules()
        for name in module._non_persistent_buffers_set
        if module._buffers.get(name) is not None
    ]
    stored = [
        (weight, weight.detach().float()) for name, weight in model.named_parameters() if _stays(model, name, dtype)
    ]
    model.to(device=device, dtype=dtype)
    for module, name, buffer in computed:
        setattr(module, name, buffer.to(device))
    for weight, values in stored:
        weight.data = values.to(device)


def _stays(model: Any, name: str, dtype: torch.dtype) -> bool:
    """Return whether the model's makers keep the weight of that name in float32 when the others have that format."""
    always, in_float16 = (
        getattr(model, attribute, None) or () for attribute in ("_keep_in_fp32_modules_strict", "_keep_in_fp32_modules")
    )
    kept = {torch.bfloat16: {*always}, torch.float16: {*always, *in_float16}}.get(dtype, set())
    return any(re.search(rf"(^|\.){part}($|\.)", name) for part in kept)


def _resident(model: nn.Module, name: str, tensor: Tensor) -> Any:
    """Return a tensor of the model's state, read from disk or memory if it is on the meta device."""
    if not tensor.is_meta:
        return tensor
    from transformers.integrations.accelerate import load_offloaded_parameter

    return load_offloaded_parameter(model, name)
