"""Check what a loaded model computes for a few tokens.

Shape legend: T positions.
"""

from __future__ import annotations

from typing import Any

import torch

from storage.errors import UnusableModelError
from storage.tensors.checkpoints.blame import blaming_files
from storage.tensors.isolation import is_causal
from storage.tensors.model_facts import body_of, context_length_of

_PROBE_TOKENS = 6


@torch.inference_mode()
def require_causal(model: Any) -> None:
    """Raise UnusableModelError when the model cannot read a few tokens, or what it says hangs on later tokens.

    A model that was trained on masked tokens has an output head too, and transformers loads it as a causal one.
    """
    with blaming_files("", {}):
        embedding = model.get_input_embeddings().weight
        length = min(_PROBE_TOKENS, context_length_of(model))
        ids_T = torch.arange(length, device=embedding.device) % len(embedding)
        model(input_ids=ids_T[None], use_cache=False)
        is_right = is_causal(body_of(model), ids_T, len(embedding))
    if not is_right:
        raise UnusableModelError(
            "what it says depends on later tokens: it is a model of masked or whole texts, no causal language model"
        )
