"""Call a model's body and head apart, and check that it may be called so.

Shape legend: N blocks, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

from storage.tensors.model_facts import body_of, context_length_of
from storage.tensors.output_head import OutputHead, output_head_of, same_logits
from storage.tensors.packing import isolated_hidden_states
from student.errors import ArchitectureError, BrokenStudentError
from student.model.isolation import choose_isolation, isolation_of

# Largest relative difference that check_architecture accepts as rounding.
_TOLERANCE = 1e-3


@torch.no_grad()
def check_architecture(model: Any, name: str, num_tokens: int) -> None:
    """Raise ArchitectureError unless an OutputHead gives the model's logits, and no text changes another's.

    num_tokens: length of the longest rows that the model will read. Choose how it reads packed documents of such rows.
    Raise BrokenStudentError when the logits are no distribution.

    The losses call the body and compute the logits themselves. If the model's head did something else, they would train
    another function than the model computes.
    """
    was_training = model.training
    model.eval()
    try:
        isolation = choose_isolation(model, num_tokens)
        logits, from_head = _logits_of_model_and_head(model)
    finally:
        model.train(was_training)
    if not bool(logits.amax(1).isfinite().all()):
        raise BrokenStudentError(name)
    if bool((logits == -torch.inf).any()):
        raise ArchitectureError(
            name, "gives some tokens probability 0 (logits of -infinity), and losses need one of each"
        )
    if isolation is None:
        raise ArchitectureError(name, "lets tokens see later tokens, or other texts of a batch")
    if from_head is None or not same_logits(from_head, logits, _TOLERANCE):
        raise ArchitectureError(name, "has an output head that is more than a matrix, a bias, a scale and a soft cap")


def _logits_of_model_and_head(model: Any) -> tuple[Tensor, Tensor | None]:
    """Return two [T, V] for the same few tokens: the model's logits, and those of its OutputHead, None without one."""
    length = min(6, context_length_of(model))
    ids = (torch.arange(length, device=model.device)[None] * 7 + 1) % num_vocabulary_rows(model)
    hidden_TD = hidden_states(model, ids, torch.arange(length, device=model.device)[None])[0]
    head = output_head_of(model)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits, None if head is None else head.logits(hidden_TD)


def hidden_states(model: Any, input_ids_NT: Tensor, position_ids_NT: Tensor) -> Tensor:
    """Return the last hidden states [N, T, D].

    A segment begins where the positions start again at 0. No segment attends to another. Positions of −1 are padding.
    """
    return isolated_hidden_states(
        body_of(model), input_ids_NT, position_ids_NT, isolation_of(model), is_one_pass=_is_sharded(model)
    )


def _is_sharded(model: Any) -> bool:
    """Return whether FSDP or DeepSpeed gathers parameters in every pass, so that all processes need as many passes.

    FSDP's modules tell, as its parameters are plain tensors during a pass.
    """
    return hasattr(next(model.parameters()), "ds_id") or any(
        isinstance(module, FSDPModule | FullyShardedDataParallel) for module in model.modules()
    )


def output_head(model: Any) -> OutputHead:
    """Return the output head of a model that check_architecture accepts."""
    head = output_head_of(model)
    assert head is not None
    return head


def num_vocabulary_rows(model: Any) -> int:
    """Return the number of rows of the student's vocabulary."""
    return int(head_weight(model).shape[0])


def head_weight(model: Any) -> nn.Parameter:
    """Return the weight of the output head [V, D]."""
    weight: nn.Parameter = model.get_output_embeddings().weight
    return weight
