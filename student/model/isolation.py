"""Choose by trial how a student reads packed documents, and how it reads a text that it writes.

What was found is kept with the model: it is asked for in every pass.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn

from storage.tensors.isolation import find_isolation
from storage.tensors.model_facts import body_of, context_length_of, rescaled_beyond
from storage.tensors.packing import Isolation

_DEFAULT_TOKENS = 64


def choose_isolation(model: Any, num_tokens: int) -> Isolation | None:
    """Return how the model runs blocks of num_tokens tokens, or None when it is not causal; keep it with the model.

    Try a copy of the body with larger weights. New weights may be so small, or 0, that nothing leaks before training.
    """
    model.isolation = find_isolation(
        _with_larger_weights(body_of(model)).eval(),
        vocab_size=model.get_output_embeddings().weight.shape[0],
        num_tokens=min(num_tokens, context_length_of(model)),
        device=model.device,
    )
    found: Isolation | None = model.isolation
    return found


def _with_larger_weights(body: nn.Module) -> nn.Module:
    """Return a copy with noise of the size of PyTorch's own initial weights, 1/√width, added to every parameter."""
    larger = copy.deepcopy(body)
    generator = torch.Generator().manual_seed(0)
    for parameter in larger.parameters():
        width = parameter.shape[-1] if parameter.ndim else 1
        parameter.data += (torch.randn(parameter.shape, generator=generator) / math.sqrt(width)).to(parameter)
    return larger


def isolation_of(model: Any) -> Isolation:
    """Return what choose_isolation found. A model that no cache was checked with is tried on short blocks first."""
    if not hasattr(model, "isolation"):
        choose_isolation(model, max(_DEFAULT_TOKENS, rescaled_beyond(model) + 1))
    found: Isolation = model.isolation or Isolation.EQUAL_ROWS
    return found
