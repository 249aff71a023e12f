"""Measures of the student's and the teacher's predictions at every position of a batch of blocks.

Shape legend: N blocks, P valid positions, C positions of a chunk, D width, V vocabulary, K head entries, E entries,
O outcomes, B most probable tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from student.losses.batches import BlockBatch
from student.losses.divergences import forward_kl
from student.losses.head_matmul import chunk_positions_on
from student.losses.targets import SparseTargets
from student.model.architecture import hidden_states, output_head


@dataclass(frozen=True, kw_only=True)
class PositionMeasures:
    """Measures per valid position.

    label_nll [P]: the student's next-token loss, nats.
    kl [P]: the student's divergence from the teacher, nats.
    confidence [P]: probability of the student's most probable token.
    is_right [P]: whether that token is the real one.
    hits [P, B]: whether the student's b-th most probable token is the teacher's most probable one.
    teacher_confidence [P], teacher_is_right [P]: the same for the teacher. When n of its tokens are equally probable,
    teacher_is_right is 1/n if one of them is the real one.
    has_top1 [P]: whether the head holds the teacher's most probable token. If not, hits and the teacher's measures
    are 0.
    """

    label_nll: Tensor
    kl: Tensor
    confidence: Tensor
    is_right: Tensor
    hits: Tensor
    teacher_confidence: Tensor
    teacher_is_right: Tensor
    has_top1: Tensor


def measure_positions(model: Any, batch: BlockBatch, num_best: int) -> PositionMeasures:
    """Measure one batch of blocks. num_best: how many of the student's most probable tokens `hits` covers."""
    hidden_PD = hidden_states(model, batch.input_ids, batch.position_ids)[batch.is_valid]
    size = chunk_positions_on(hidden_PD.device)
    parts = []
    for start in range(0, max(1, len(hidden_PD)), size):  # one-token documents have no positions
        logits_CV = output_head(model).logits(hidden_PD[start : start + size].float())
        targets = batch.targets.slice(start, start + size)
        parts.append(_measure_chunk(torch.log_softmax(logits_CV, dim=1), targets, num_best))
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if batch.targets.tail_weight is not None:
        assert batch.entropy is not None, "a sampled tail gives a KL only together with the entropy"
        whole["kl"] = whole["kl"] - batch.entropy
    return PositionMeasures(**whole)


def _measure_chunk(logs_CV: Tensor, targets: SparseTargets, num_best: int) -> dict[str, Tensor]:
    best_logs_CB, best_ids_CB = _most_probable(logs_CV, num_best)
    is_teachers_best_CK, teachers_log_C = _teachers_best(targets)
    hits_CB = [(is_teachers_best_CK & (targets.head_ids == id_C1)).any(1) for id_C1 in best_ids_CB.T[:, :, None]]
    num_teachers_best_C = is_teachers_best_CK.sum(1)
    holds_label_C = (is_teachers_best_CK & (targets.head_ids == targets.label_ids[:, None])).any(1)
    return {
        "label_nll": -logs_CV.gather(1, targets.label_ids[:, None])[:, 0],
        "kl": _kl_or_cross_entropy(logs_CV, targets),
        "confidence": best_logs_CB[:, 0].exp(),
        "is_right": best_ids_CB[:, 0] == targets.label_ids,
        "hits": torch.stack(hits_CB, dim=1),
        "teacher_confidence": teachers_log_C.exp(),
        "teacher_is_right": holds_label_C / num_teachers_best_C.clamp(min=1),
        # The head holds the largest probabilities, so every head that is not empty has the most probable token.
        "has_top1": num_teachers_best_C > 0,
    }


def _most_probable(logs_CV: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and ids [C, B] of the `num` most probable tokens, best first."""
    if num == 1:  # several times as fast as topk
        return logs_CV.max(dim=1, keepdim=True)
    return logs_CV.topk(min(num, logs_CV.shape[1]), dim=1)


def _teachers_best(targets: SparseTargets) -> tuple[Tensor, Tensor]:
    """Return which head entries have the largest log-probability [C, K], and that log-probability [C].

    Rounding makes ties, so there may be several. An empty head has none, and −inf.
    """
    if targets.head_ids.shape[1] == 0:
        return targets.is_head, torch.full_like(targets.tail_logprob, -torch.inf)
    largest_C1 = targets.head_logprobs.masked_fill(~targets.is_head, -torch.inf).amax(1, keepdim=True)
    return targets.is_head & (targets.head_logprobs == largest_C1), largest_C1[:, 0]


def _kl_or_cross_entropy(logs_CV: Tensor, targets: SparseTargets) -> Tensor:
    if targets.tail_weight is not None:
        ids_CE, weights_CE = targets.sampled_weights(1.0)
        return -(weights_CE * logs_CV.gather(1, ids_CE)).sum(1)
    head_CK = logs_CV.gather(1, targets.head_ids).masked_fill(~targets.is_head, -torch.inf)
    masked_CV = logs_CV.scatter_add(
        1, targets.head_ids, torch.zeros_like(targets.head_logprobs).masked_fill(targets.is_head, -torch.inf)
    )
    logq_CO = torch.cat([head_CK, masked_CV.logsumexp(dim=1, keepdim=True)], dim=1)
    return forward_kl(targets.coarse_logprobs(1.0), logq_CO)[0]
