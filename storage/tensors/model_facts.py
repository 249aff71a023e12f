"""Facts about a loaded causal language model that teacher and student need."""

from __future__ import annotations

from typing import Any

from torch import nn

_NO_LIMIT = 1 << 30
_CONTEXT_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")


def context_length_of(model: Any) -> int:
    """Return the longest sequence that the model can read, in tokens; 2^30 when its config states no limit.

    The config of a model of several parts states it for the part that reads text.
    """
    config = model.config
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    stated = (getattr(config, name, None) for name in _CONTEXT_LENGTHS)
    return next((int(length) for length in stated if length), _NO_LIMIT)


def body_of(model: Any) -> Any:
    """Return the part of the model that gives hidden states; the head, which gives logits, is not in it."""
    candidates = (model.base_model, model.get_decoder(), getattr(model, "model", None))
    return next(part for part in candidates if part is not None and part is not model)


def num_parameters(model: nn.Module) -> int:
    """Return the number of parameters. Tied parameters count once."""
    return sum(parameter.numel() for parameter in model.parameters())
