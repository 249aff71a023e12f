"""Choose by trial how a student reads packed documents, and how it reads a text that it writes.

What was found is kept with the model: it is asked for in every pass.
"""

from __future__ import annotations

import copy
from typing import Any

from storage.tensors.isolation import find_isolation
from storage.tensors.model_facts import body_of, context_length_of, rescaled_beyond
from storage.tensors.packing import Isolation
from student.model.enlarging import enlarge_weights

_DEFAULT_TOKENS = 64


def choose_isolation(model: Any, num_tokens: int) -> Isolation | None:
    """Return how the model runs blocks of num_tokens tokens, or None when it is not causal; keep it with the model.

    Try a copy of the body with large weights. New weights may be so small, or 0, that nothing leaks before training.
    """
    body = copy.deepcopy(body_of(model)).eval()
    enlarge_weights(body)
    model.isolation = find_isolation(
        body,
        vocab_size=model.get_output_embeddings().weight.shape[0],
        num_tokens=min(num_tokens, context_length_of(model)),
        device=model.device,
    )
    found: Isolation | None = model.isolation
    return found


def isolation_of(model: Any) -> Isolation:
    """Return what choose_isolation found. A model that no cache was checked with is tried on short blocks first."""
    if not hasattr(model, "isolation"):
        choose_isolation(model, max(_DEFAULT_TOKENS, rescaled_beyond(model) + 1))
    found: Isolation = model.isolation or Isolation.EQUAL_ROWS
    return found
