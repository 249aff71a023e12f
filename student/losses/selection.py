"""Beam selection: the student learns to choose the candidate that the teacher ranks best.

Shape legend: B prompts, N candidates of a prompt (padded), L candidates in all.
"""

from __future__ import annotations

import torch
from torch import Tensor


def length_normalised_scores(sum_logprobs_L: Tensor, lengths_L: Tensor, length_penalty: float) -> Tensor:
    """Return sum_logprobs / length^length_penalty [L], the formula of the scores in the cache."""
    return sum_logprobs_L / lengths_L.to(sum_logprobs_L.dtype) ** length_penalty


def selection_loss(student_scores_BN: Tensor, teacher_scores_BN: Tensor, temperature: float | None) -> Tensor:
    """Return the cross-entropy from the teacher's choice to the student's, one value per prompt [B], nats.

    With a temperature τ, the choices are softmax(teacher scores / τ) and softmax(student scores / τ). With None, the
    teacher's choice is its best candidate alone, and the student's is softmax(student scores). Missing candidates have
    score −inf in both.
    """
    is_candidate_BN = teacher_scores_BN > -torch.inf
    if temperature is None:
        choice_BN = torch.zeros_like(student_scores_BN).scatter(1, teacher_scores_BN.argmax(1, keepdim=True), 1.0)
    else:
        choice_BN = torch.softmax(teacher_scores_BN / temperature, dim=1).to(student_scores_BN.dtype)
    logprobs_BN = torch.log_softmax(student_scores_BN / (temperature or 1.0), dim=1)
    return -(choice_BN * logprobs_BN.masked_fill(~is_candidate_BN, 0.0)).sum(1)
