"""Call a model's body and head apart, and check that it may be called so.

Shape legend: N blocks, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from storage.rows.segments import position_ids
from storage.tensors.model_facts import context_length_of
from storage.tensors.packing import packed_hidden_states, packing_leak, relative_difference
from student.errors import ArchitectureError, BrokenStudentError

# Largest relative difference that check_architecture accepts as rounding.
_TOLERANCE = 1e-3


@torch.no_grad()
def check_architecture(model: Any, name: str) -> None:
    """Raise ArchitectureError unless hidden states times head weight are the logits, and packed documents are isolated.

    Raise it also when the model does not take positions. Raise BrokenStudentError when the logits are not finite.

    The losses call the body and multiply by the head's weight themselves. They would ignore a bias, a scale or a cap of
    the head, and train another function than the model computes.
    """
    was_training = model.training
    model.eval()
    try:
        logits, from_head = _logits_and_product_with_head(model)
        leak = _packing_leak(model)
    except TypeError as error:
        raise ArchitectureError(name, "does not take positions") from error
    finally:
        model.train(was_training)
    if not bool(logits.isfinite().all()):
        raise BrokenStudentError(name)
    # Written with `not` so that NaN is refused too.
    if not relative_difference(from_head, logits) <= _TOLERANCE:
        raise ArchitectureError(name, "has an output head that is more than a matrix")
    if not leak <= _TOLERANCE:
        raise ArchitectureError(name, "lets packed documents see each other")


def _logits_and_product_with_head(model: Any) -> tuple[Tensor, Tensor]:
    """Return two [T, V] for the same few tokens: the model's logits, and hidden states times head weight."""
    length = min(6, context_length_of(model))
    ids = (torch.arange(length, device=model.device)[None] * 7 + 1) % head_weight(model).shape[0]
    hidden_TD = hidden_states(model, ids, torch.arange(length, device=model.device)[None])[0]
    return model(input_ids=ids, use_cache=False).logits[0], hidden_TD @ head_weight(model).T


def _packing_leak(model: Any) -> float:
    def hidden_of(ids: NDArray[np.int64], segment_lengths: list[NDArray[np.int64]]) -> Tensor:
        positions = np.stack([position_ids(lengths) for lengths in segment_lengths])
        return hidden_states(model, *(torch.from_numpy(array).to(model.device) for array in (ids, positions)))

    return packing_leak(hidden_of, vocab_size=head_weight(model).shape[0], context_length=context_length_of(model))


def hidden_states(model: Any, input_ids_NT: Tensor, position_ids_NT: Tensor) -> Tensor:
    """Return the last hidden states [N, T, D].

    A segment begins where the positions start again at 0. No segment attends to another.
    """
    return packed_hidden_states(model.base_model, input_ids_NT, position_ids_NT)


def head_weight(model: Any) -> nn.Parameter:
    """Return the weight of the output head [V, D]."""
    weight: nn.Parameter = model.get_output_embeddings().weight
    return weight
