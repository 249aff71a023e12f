"""Measures of a student's distributions against its teacher's, both over the whole vocabulary.

Shape legend: C positions of a chunk, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from scripts.study.networks import chunk_positions, hidden_states, logprobs


class Measures:
    """Sums over positions, accumulated chunk by chunk."""

    def __init__(self) -> None:
        self._kl = self._nll = self._entropy = self._acceptance = 0.0
        self._confidence: list[Tensor] = []
        self._is_right: list[Tensor] = []

    def add(self, student_CV: Tensor, teacher_CV: Tensor, label_ids_C: Tensor) -> None:
        """Add a chunk of positions, from both models' log-probabilities [C, V] and the labels [C]."""
        probs_CV = teacher_CV.exp()
        self._kl += float((probs_CV * (teacher_CV - student_CV)).sum())
        self._entropy -= float((probs_CV * teacher_CV).sum())
        self._acceptance += float(torch.minimum(probs_CV, student_CV.exp()).sum())
        self._nll -= float(student_CV.gather(1, label_ids_C[:, None]).sum())
        best_logprob_C, best_C = student_CV.max(1)
        self._confidence.append(best_logprob_C.exp().cpu())
        self._is_right.append((best_C == label_ids_C).float().cpu())

    def summary(self) -> dict[str, float]:
        """Return kl_nats, perplexity, calibration_error, entropy_nats (the teacher's) and acceptance.

        acceptance: mean of Σ min(p, s), the chance that speculative sampling accepts the student's token (Leviathan et
        al. 2023, theorem 3.5).
        """
        confidence, is_right = torch.cat(self._confidence), torch.cat(self._is_right)
        count = len(confidence)
        return {
            "kl_nats": self._kl / count,
            "perplexity": math.exp(self._nll / count),
            "calibration_error": calibration_error(confidence, is_right),
            "entropy_nats": self._entropy / count,
            "acceptance": self._acceptance / count,
        }


def calibration_error(confidence: Tensor, is_right: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error (Guo et al. 2017, equation 3) of the most probable token.

    confidence, is_right: [N], one per position.
    """
    index = (confidence * bins).long().clamp(max=bins - 1)
    total = 0.0
    for b in range(bins):
        chosen = index == b
        if chosen.any():
            total += float(chosen.float().mean() * (confidence[chosen].mean() - is_right[chosen].mean()).abs())
    return total


@torch.no_grad()
def evaluate_models(models: dict[str, Any], teacher: Any, held_out: Tensor) -> dict[str, dict[str, float]]:
    """Return each model's measures on held-out blocks: dense KL from the teacher, perplexity, calibration error."""
    device = next(teacher.parameters()).device
    chunk = chunk_positions(teacher.config.vocab_size, device)
    measures = {name: Measures() for name in models}
    for blocks in torch.split(held_out, 16):
        ids = blocks.to(device)
        labels_P = ids[:, 1:].reshape(-1)
        teacher_PD = hidden_states(teacher, ids[:, :-1])
        hidden = {name: hidden_states(model, ids[:, :-1]) for name, model in models.items()}
        for start in range(0, len(labels_P), chunk):
            part = slice(start, start + chunk)
            teacher_CV = logprobs(teacher, teacher_PD[part])
            for name, model in models.items():
                measures[name].add(logprobs(model, hidden[name][part]), teacher_CV, labels_P[part])
    return {name: found.summary() for name, found in measures.items()}
