"""Measures of a student beside its teacher, both dense.

Shape legend: C positions of a chunk, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def measure(parts: Iterable[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
    """kl_nats, perplexity, calibration_error and entropy_nats (the teacher's), all per position.

    parts: student's and teacher's log-probabilities [C, V] and labels [C].
    """
    kl, nll, entropy, count = 0.0, 0.0, 0.0, 0
    confidence, is_right = [], []
    for student_CV, teacher_CV, labels_C in parts:
        probs_CV = teacher_CV.exp()
        kl += float((probs_CV * (teacher_CV - student_CV)).sum())
        entropy -= float((probs_CV * teacher_CV).sum())
        nll -= float(student_CV.gather(1, labels_C[:, None]).sum())
        best_logprob_C, best_C = student_CV.max(1)
        confidence.append(best_logprob_C.exp().cpu())
        is_right.append((best_C == labels_C).float().cpu())
        count += len(labels_C)
    return {
        "kl_nats": kl / count,
        "perplexity": math.exp(nll / count),
        "calibration_error": calibration_error(torch.cat(confidence), torch.cat(is_right)),
        "entropy_nats": entropy / count,
    }


def calibration_error(confidence: Tensor, is_right: Tensor, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, equation 3) of the most probable token; both [N]."""
    index = (confidence * bins).long().clamp(max=bins - 1)
    total = 0.0
    for b in range(bins):
        chosen = index == b
        if chosen.any():
            total += float(chosen.float().mean() * (confidence[chosen].mean() - is_right[chosen].mean()).abs())
    return total
