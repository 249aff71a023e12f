"""Facts about a loaded causal language model that teacher and student need."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import nn

_NO_LIMIT = 1 << 30
_CONTEXT_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")


def context_length_of(model: Any) -> int:
    """Return the longest sequence that the model can read, in tokens; 2^30 when its config states no limit.

    The config of a model of several parts states it for the part that reads text.
    """
    config = _text_config(model)
    stated = (getattr(config, name, None) for name in _CONTEXT_LENGTHS)
    return next((int(length) for length in stated if length), _NO_LIMIT)


def vocab_size_of(model: Any) -> int:
    """Return the number of ids that the model has a row of its output head for; by its config if it names no head."""
    head = model.get_output_embeddings()
    return int(_text_config(model).vocab_size if head is None else head.weight.shape[0])


def rescaled_beyond(model: Any) -> int:
    """Return the length in tokens beyond which a text's own length changes its rotary positions; 0 if none does."""
    config = _text_config(model)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in ("longrope", "dynamic"):
        return 0
    stated = (getattr(part, "original_max_position_embeddings", None) for part in (config, SimpleNamespace(**rope)))
    return next((int(length) for length in stated if length), context_length_of(model))


def body_of(model: Any) -> Any:
    """Return the part of the model that gives hidden states; the head, which gives logits, is not in it."""
    return bodies_of(model)[0]


def bodies_of(model: Any) -> list[Any]:
    """Return the parts of the model that its forward pass may call for hidden states.

    In models that wrap a decoder, the forward pass calls the decoder, not the wrapper. Some models call the matrix of
    their head decoder.
    """
    parts = (model.base_model, model.get_decoder(), getattr(model, "model", None))
    no_bodies = {None, model, model.get_output_embeddings()}
    return [part for part in dict.fromkeys(parts) if part not in no_bodies]


def _text_config(model: Any) -> Any:
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def num_parameters(model: nn.Module) -> int:
    """Return the number of parameters. Tied parameters count once."""
    return sum(parameter.numel() for parameter in model.parameters())
