"""Compute the loss from hidden states without ever holding logits of [P, V].

The forward pass takes the positions through the head in chunks. It overwrites each chunk's logits with their gradient
and multiplies that into the gradients of the hidden states and of the head. The backward pass only scales these
(the idea of Liger's fused linear losses, Hsu et al. 2024).

Shape legend: P positions, C positions of a chunk, D width, V vocabulary, K head entries, J tail draws, O = K + 1
outcomes, E = K + J entries. z are the student's logits, s = softmax(z), s(T) = softmax(z / T), q the teacher's sampled
weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from storage.tensors.output_head import OutputHead
from student.losses.core_threads import parts_of, run_parts
from student.losses.divergences import DIVERGENCES
from student.losses.head_matmul import (
    ChunkedHead,
    HeadGradients,
    chunk_positions_on,
    matmul_dtype_of,
    softmax_,
    upcast,
)
from student.losses.targets import SparseTargets


@dataclass(frozen=True, kw_only=True)
class HeadLoss:
    """The loss of a position: soft_weight · T² · soft loss + label_weight · next-token loss.

    unbiased: the soft loss is the cross-entropy −Σ q log s(T) with the sampled tail. Its expectation is the forward KL
    plus the teacher's entropy. If not unbiased, the soft loss is `divergence` on the coarse outcomes: each head entry,
    and the whole tail as one.
    """

    divergence: str
    unbiased: bool
    temperature: float
    soft_weight: float
    label_weight: float


def fused_head_loss(
    hidden_PD: Tensor,
    head: OutputHead,
    targets: SparseTargets,
    loss: HeadLoss,
    chunk_positions: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weighted sum over positions, and the unweighted sums of the soft loss and of the next-token loss.

    hidden_PD: last hidden states at the positions of `targets`; chunk_positions: positions per chunk, None for the
    device's default. All three sums are scalars in nats. The first carries the gradient and is float64 for float64
    input, else float32. The other two are float64 and carry none. The sum of the soft loss is at temperature T, without
    the factor T². The sum of a loss with weight 0 may be returned as 0.
    """
    leaves = (hidden_PD, head.weight_VD, head.bias_V)
    needs_gradient = torch.is_grad_enabled() and any(leaf is not None and leaf.requires_grad for leaf in leaves)
    chunk = chunk_positions or chunk_positions_on(hidden_PD.device)
    total, soft_sum, label_sum = _FusedHead.apply(*leaves, head, targets, loss, chunk, needs_gradient)  # type: ignore[no-untyped-call]
    return total, soft_sum, label_sum


class _FusedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_PD: Tensor,
        _weight_VD: Tensor,
        _bias_V: Tensor | None,
        head: OutputHead,
        targets: SparseTargets,
        loss: HeadLoss,
        chunk: int,
        needs_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take the head's weight and bias as arguments of their own too, because autograd looks at those alone."""
        gradients = HeadGradients.to_fill(hidden_PD, head) if needs_gradient else None
        sums = hidden_PD.new_zeros(2, dtype=torch.float64)
        chunked = ChunkedHead(hidden_PD, head, matmul_dtype=matmul_dtype_of(hidden_PD), chunk_positions=chunk)
        for positions, logits_CV in chunked.chunks():
            sums += losses_to_gradient(logits_CV, targets.slice(positions.start, positions.stop), loss)
            if gradients is not None:
                chunked.add_gradients(positions, logits_CV, gradients)
        if gradients is not None:
            # Saved, not kept in ctx: PyTorch then hands them over to the parameters without a copy.
            ctx.save_for_backward(gradients.hidden_PD, gradients.weight_VD, gradients.bias_V)
        soft_sum, label_sum = sums
        soft_weight = loss.soft_weight * loss.temperature**2
        total = (soft_weight * soft_sum + loss.label_weight * label_sum).to(upcast(hidden_PD).dtype)
        ctx.mark_non_differentiable(soft_sum, label_sum)
        return total, soft_sum, label_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if saved is None else saved.mul_(grad_total) for saved in ctx.saved_tensors)
        return *gradients, *[None] * 5


def losses_to_gradient(logits_CV: Tensor, targets: SparseTargets, loss: HeadLoss) -> Tensor:
    """Overwrite a chunk's logits with the gradient of the weighted sum; return [soft sum, label sum], float64.

    targets: those of the chunk. Threads share its rows.
    """

    def run(rows: slice) -> Tensor:
        return _losses_to_gradient(logits_CV[rows], targets.slice(rows.start, rows.stop), loss)

    return torch.stack(run_parts(run, parts_of(len(logits_CV), logits_CV))).sum(0)


def _losses_to_gradient(logits_CV: Tensor, targets: SparseTargets, loss: HeadLoss) -> Tensor:
    if loss.soft_weight == 0.0 or (loss.unbiased and loss.temperature == 1.0):
        return _unbiased_with_labels(logits_CV, targets, loss)
    label_logprob_C, label_gradient_CV = None, None
    if loss.temperature != 1.0 and loss.label_weight:
        label_logs_CV = torch.log_softmax(logits_CV, dim=1)
        label_logprob_C = label_logs_CV.gather(1, targets.label_ids[:, None])[:, 0]
        label_gradient_CV = label_logs_CV.exp_()
    if loss.unbiased:
        soft_C = _unbiased(logits_CV, targets, loss)
    else:
        soft_C, label_logprob_at_1_C = _bucketed(logits_CV, targets, loss)
        label_logprob_C = label_logprob_at_1_C if label_logprob_C is None else label_logprob_C
    if label_gradient_CV is not None:
        logits_CV.add_(label_gradient_CV, alpha=loss.label_weight)
    if loss.label_weight:
        _subtract_at(logits_CV, targets.label_ids[:, None], loss.label_weight)
    label_sum = -label_logprob_C.sum() if label_logprob_C is not None else soft_C.new_zeros(())
    return torch.stack([soft_C.sum(), label_sum]).double()


def _unbiased_with_labels(logits_CV: Tensor, targets: SparseTargets, loss: HeadLoss) -> Tensor:
    """Compute −Σ q log s and −log s_label at T = 1 from one softmax; return as losses_to_gradient does.

    With w = soft_weight · q + label_weight · onehot(label), the gradient is (Σ w) s − w.
    """
    label_logit_C1 = logits_CV.gather(1, targets.label_ids[:, None])
    mass_C1 = torch.full_like(label_logit_C1, loss.label_weight)
    if loss.soft_weight:
        ids_CE, weights_CE = targets.sampled_weights(1.0)
        logits_CE = logits_CV.gather(1, ids_CE)
        mass_C1 += loss.soft_weight * weights_CE.sum(1, keepdim=True)
    log_partition_C1 = softmax_(logits_CV, mass_C1)
    soft_C1 = torch.zeros_like(label_logit_C1)
    if loss.soft_weight:
        soft_C1 = (weights_CE * (log_partition_C1 - logits_CE)).sum(1, keepdim=True)
        _subtract_at(logits_CV, ids_CE, loss.soft_weight * weights_CE)
    _subtract_at(logits_CV, targets.label_ids[:, None], loss.label_weight)
    return torch.stack([soft_C1.sum(), (log_partition_C1 - label_logit_C1).sum()]).double()


def _unbiased(logits_CV: Tensor, targets: SparseTargets, loss: HeadLoss) -> Tensor:
    """Return −Σ q log s(T) [C] and overwrite the logits with the gradient of soft_weight · T² times it.

    The gradient's factor is soft_weight · T: T² of the loss times 1/T of ∂(z/T)/∂z.
    """
    logits_CV.div_(loss.temperature)
    ids_CE, weights_CE = targets.sampled_weights(loss.temperature)
    logits_CE = logits_CV.gather(1, ids_CE)
    scale = loss.soft_weight * loss.temperature
    log_partition_C1 = softmax_(logits_CV, scale * weights_CE.sum(1, keepdim=True))
    _subtract_at(logits_CV, ids_CE, scale * weights_CE)
    return (weights_CE * (log_partition_C1 - logits_CE)).sum(1)


def _bucketed(logits_CV: Tensor, targets: SparseTargets, loss: HeadLoss) -> tuple[Tensor, Tensor | None]:
    """Return the divergence on O outcomes [C] and, at T = 1 with a label weight, the label's log-probability [C].

    Overwrite the logits with the gradient of the weighted divergence. At T = 1, it includes label_weight · s; the
    caller subtracts label_weight at the label. Inside the tail the student keeps its own proportions:
    ∂L/∂z_j = (s_j / s_tail) ∂L/∂u_tail. Sum the tail's mass over the tail itself, never as 1 − Σ head.
    """
    if loss.temperature != 1.0:
        logits_CV.div_(loss.temperature)
    label_logit_C = logits_CV.gather(1, targets.label_ids[:, None])[:, 0]
    head_CK = logits_CV.gather(1, targets.head_ids).masked_fill(~targets.is_head, -torch.inf)
    _mask_at(logits_CV, targets.head_ids, targets.is_head)
    tail_C1 = softmax_(logits_CV)
    outcomes_CO = torch.cat([head_CK, tail_C1], dim=1)
    log_partition_C1 = outcomes_CO.logsumexp(dim=1, keepdim=True)
    logq_CO = outcomes_CO - log_partition_C1
    soft_C, gradient_CO = DIVERGENCES[loss.divergence](
        targets.coarse_logprobs(loss.temperature).to(logq_CO.dtype), logq_CO
    )
    gradient_CO = gradient_CO * (loss.soft_weight * loss.temperature)
    label_logprob_C = None
    if loss.temperature == 1.0 and loss.label_weight:
        label_logprob_C = label_logit_C - log_partition_C1[:, 0]
        gradient_CO = gradient_CO + loss.label_weight * logq_CO.exp()
    logits_CV.mul_(gradient_CO[:, -1:])
    head_gradient_CK = gradient_CO[:, :-1].masked_fill(~targets.is_head, 0.0)
    logits_CV.scatter_add_(1, targets.head_ids, head_gradient_CK)
    return soft_C, label_logprob_C


def _mask_at(logits_CV: Tensor, ids_CK: Tensor, is_chosen_CK: Tensor) -> None:
    """Set the logits at the chosen ids to −inf.

    Add the penalty instead of writing it: an id of the padding, whose penalty is 0, may be that of a chosen entry.
    """
    penalty_CK = torch.zeros_like(ids_CK, dtype=logits_CV.dtype).masked_fill(is_chosen_CK, -torch.inf)
    logits_CV.scatter_add_(1, ids_CK, penalty_CK)


def _subtract_at(values_CV: Tensor, ids_CE: Tensor, amount: Tensor | float) -> None:
    amounts_CE = torch.as_tensor(amount, dtype=values_CV.dtype, device=values_CV.device).expand(ids_CE.shape)
    values_CV.scatter_add_(1, ids_CE, -amounts_CE)
