"""Build a model without memory for its weights, to learn their number before they are allocated."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as module_hooks

from storage.errors import UnusableModelError
from storage.tensors.model_facts import num_parameters

# The largest mixtures of experts that keep each expert apart have a hundred thousand modules.
_MOST_MODULES = 1_000_000
_BYTES_PER_PARAMETER = 4


def require_room(build: Callable[[], Any], most_parameters: int, limit: str) -> None:
    """Raise UnusableModelError when `build` makes a model of more than `most_parameters`.

    build: makes the model; it runs on PyTorch's meta device, where tensors have shapes and no memory. limit: what the
    number comes from, for the message.
    """
    found = num_parameters(_without_memory(build))
    if found > most_parameters:
        raise UnusableModelError(
            f"its config describes {found:,} parameters, at most {most_parameters:,} are possible with {limit}: "
            "vocab_size, width or depth in it is too large"
        )


def most_parameters_in_memory() -> int:
    """Return the number of float32 parameters that fill this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _BYTES_PER_PARAMETER


def _without_memory(build: Callable[[], Any]) -> Any:
    """Return the model that `build` makes, on the meta device; raise UnusableModelError beyond _MOST_MODULES."""
    num_modules = 0

    def count(parent: nn.Module, name: str, child: nn.Module | None) -> None:
        nonlocal num_modules
        num_modules += 1
        if num_modules > _MOST_MODULES:
            raise UnusableModelError(f"its config describes more than {_MOST_MODULES:,} layers and parts of layers")

    counting = module_hooks.register_module_module_registration_hook(count)
    try:
        with torch.device("meta"):
            return build()
    finally:
        counting.remove()
