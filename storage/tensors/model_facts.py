"""What both sides ask of a loaded causal language model."""

from __future__ import annotations

from typing import Any

from torch import nn

_NO_LIMIT = 1 << 30


def context_length_of(model: Any) -> int:
    """Longest sequence that the model can read, in tokens."""
    return int(getattr(model.config, "max_position_embeddings", None) or _NO_LIMIT)


def num_parameters(model: nn.Module) -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
