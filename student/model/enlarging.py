"""Give a model the large weights of a trained one, so that checks see all that it computes."""

from __future__ import annotations

import math
from typing import Any

import torch

# Logits of trained models reach tens of nats, where caps bend them.
_LOGIT_DEVIATION_NATS = 20.0


@torch.no_grad()
def enlarge_weights(model: Any, seed: int = 0) -> None:
    """Replace all parameters of a model, or of its body, by random ones that are as large as in trained models.

    Matrices about keep the size of what they multiply: their entries have the deviation 1/√(shorter side). Those of the
    head are larger, so that logits have a deviation of about 20 nats. Vectors get a deviation of 0.5 around what they
    were. The same seed gives the same weights.
    """
    generator = torch.Generator().manual_seed(seed)
    head: Any = getattr(getattr(model, "get_output_embeddings", lambda: None)(), "weight", None)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter is head:
            parameter.copy_(noise * (_LOGIT_DEVIATION_NATS / math.sqrt(head.shape[1])))
        elif parameter.ndim < 2:
            parameter.add_(noise * 0.5)
        else:
            parameter.copy_(noise / math.sqrt(min(parameter.shape[-2:])))
