"""Compare by a few tokens what two models compute, also with a key-value cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UncuttableTeacherError
from storage.errors import UnusableModelError
from storage.tensors.checkpoints.blame import blaming_files
from storage.tensors.isolation import unless_refused
from storage.tensors.model_facts import context_length_of
from storage.tensors.output_head import same_logits

_NUM_TOKENS = 12


def require_same_function(found: Any, expected: Any) -> None:
    """Raise UncuttableTeacherError unless two models give equal logits, but for rounding."""
    wanted = probe(expected)
    try:
        with blaming_files("", {}):
            ours = probe(found)
    except UnusableModelError as error:
        raise UncuttableTeacherError(f"what is kept of it does not run alone: {error.reason}") from error
    for how, ours_CV, wanted_CV in zip(("", " with a key-value cache"), ours, wanted, strict=True):
        if wanted_CV is not None and (ours_CV is None or not same_logits(ours_CV, wanted_CV)):
            raise UncuttableTeacherError(
                f"what is kept of it computes something else{how} than it does inside the teacher: its layers share "
                "weights or keys, or know their number"
            )


@torch.no_grad()
def probe(model: Any) -> tuple[Tensor, Tensor | None]:
    """Return float32 logits [T, V] of a few tokens, and those of the last ones [2, V] with a key-value cache.

    The second are None for a model that has no such cache. Nothing is dropped out.
    """
    length = min(_NUM_TOKENS, context_length_of(model))
    vocab_size = model.get_input_embeddings().weight.shape[0]
    ids_NT = (torch.arange(length, device=model.device)[None] * 7 + 1) % vocab_size
    was_training = model.training
    model.eval()
    try:
        logits_TV = model(input_ids=ids_NT, use_cache=False).logits[0].float()
        return logits_TV, unless_refused(lambda: _cached(model, ids_NT))
    finally:
        model.train(was_training)


def _cached(model: Any, ids_NT: Tensor) -> Tensor:
    cache, logits = None, []
    for part_NT in (ids_NT[:, :-2], ids_NT[:, -2:-1], ids_NT[:, -1:]):
        output = model(input_ids=part_NT, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits[0, -1].float())
    return torch.stack(logits[1:])
