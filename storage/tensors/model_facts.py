"""Facts about a loaded causal language model that teacher and student need."""

from __future__ import annotations

from typing import Any

from torch import nn

_NO_LIMIT = 1 << 30


def context_length_of(model: Any) -> int:
    """Return the longest sequence that the model can read, in tokens; 2^30 when its config states no limit."""
    return int(getattr(model.config, "max_position_embeddings", None) or _NO_LIMIT)


def num_parameters(model: nn.Module) -> int:
    """Return the number of parameters. Tied parameters count once."""
    return sum(parameter.numel() for parameter in model.parameters())
