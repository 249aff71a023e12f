"""Check what a loaded model computes for a few tokens.

Shape legend: N rows, T positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from storage.errors import UnusableModelError
from storage.tensors.checkpoints.blame import blaming_files
from storage.tensors.model_facts import context_length_of

_PROBE_TOKENS = 6
# Rounding makes smaller differences than these, as shares of the largest logit, for the same tokens in the same places.
_TOLERANCE, _SHORT_FLOAT_TOLERANCE = 1e-4, 1e-2


@torch.inference_mode()
def require_causal(model: Any) -> None:
    """Raise UnusableModelError when the model cannot read a few tokens, or what it says hangs on later tokens.

    A model that was trained on masked tokens has an output head too, and transformers loads it as a causal one.
    """
    length = min(_PROBE_TOKENS, context_length_of(model))
    with blaming_files("", {}):
        ids = torch.arange(length, device=model.get_input_embeddings().weight.device)[None] % _num_ids(model)
        changed = ids.clone()
        changed[0, -1] = (changed[0, -1] + 1) % _num_ids(model)
        expected_TV, found_TV = (_logits(model, tokens)[:-1] for tokens in (ids, changed))
    tolerance = _TOLERANCE if model.dtype in (torch.float32, torch.float64) else _SHORT_FLOAT_TOLERANCE
    is_same = (found_TV - expected_TV).abs() <= tolerance * expected_TV.abs().max()
    # Values that are not finite are told apart elsewhere.
    if not bool((is_same | ~expected_TV.isfinite() | ~found_TV.isfinite()).all()):
        raise UnusableModelError(
            "its logits depend on later tokens: it is a model of masked or whole texts, no causal language model"
        )


def _logits(model: Any, ids_NT: Tensor) -> Tensor:
    logits_TV: Tensor = model(input_ids=ids_NT, use_cache=False).logits[0].float()
    return logits_TV


def _num_ids(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])
