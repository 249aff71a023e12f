"""Run the model on a batch: hidden states at its targets, and scores of candidates.

Shape legend: B prompts, N candidates of a prompt, L candidates of all prompts, P targets, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from student.losses.batches import BeamBatch, BlockBatch, TextBatch
from student.losses.selection import length_normalised_scores
from student.losses.token_logprobs import token_logprobs
from student.model.architecture import hidden_states, output_head


def candidate_scores(model: Any, batch: BeamBatch, length_penalty: float) -> Tensor:
    """Return the student's length-normalised scores [B, N] in nats, −inf where a prompt has fewer candidates."""
    hidden_PD = hidden_at(model, batch.texts, batch.texts.is_target)
    logprobs_P = token_logprobs(hidden_PD, output_head(model), batch.texts.label_ids)
    owner_P = torch.repeat_interleave(torch.arange(len(batch.lengths), device=hidden_PD.device), batch.lengths)
    sums_L = logprobs_P.new_zeros(len(batch.lengths)).index_add(0, owner_P, logprobs_P)
    scores_L = length_normalised_scores(sums_L, batch.lengths, length_penalty)
    scores_BN = torch.full_like(batch.teacher_scores, -torch.inf, dtype=scores_L.dtype)
    return scores_BN.index_put((batch.prompt_index, batch.slot), scores_L)


def hidden_at(model: Any, batch: BlockBatch | TextBatch, is_target: Tensor) -> Tensor:
    """Return the last hidden states [P, D] at the targets, in row-major order.

    For a batch without rows, run the model on one token and return [0, D]: every process takes part in every pass.
    """
    if not len(batch.input_ids):
        token_11 = is_target.new_zeros((1, 1), dtype=torch.int64)
        return hidden_states(model, token_11, token_11)[:, :0].flatten(0, 1)
    return hidden_states(model, batch.input_ids, batch.position_ids)[is_target]
