"""The losses of fused_head for a model that gives logits.

Shape legend: N blocks, T positions, P wanted positions, C positions of a chunk, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from student.losses.fused_head import HeadLoss, losses_to_gradient
from student.losses.head_matmul import chunk_positions_on, upcast
from student.losses.targets import SparseTargets


def logits_loss(logits_NTV: Tensor, is_wanted_NT: Tensor, targets: SparseTargets, loss: HeadLoss) -> Tensor:
    """Return the weighted sum of fused_head_loss, a scalar in nats: float64 for float64 logits, else float32.

    targets: those of the P positions where is_wanted_NT is True, in row-major order. The forward pass takes the logits
    in chunks and keeps their gradient, in their dtype; no other tensor has the size of the logits.
    """
    needs_gradient = torch.is_grad_enabled() and logits_NTV.requires_grad
    total: Tensor = _LogitsLoss.apply(logits_NTV, is_wanted_NT, targets, loss, needs_gradient)  # type: ignore[no-untyped-call]
    return total


class _LogitsLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_NTV: Tensor,
        is_wanted_NT: Tensor,
        targets: SparseTargets,
        loss: HeadLoss,
        needs_gradient: bool,
    ) -> Tensor:
        gradient_NTV = torch.zeros_like(logits_NTV) if needs_gradient else None
        sums = logits_NTV.new_zeros(2, dtype=torch.float64)
        chunk = chunk_positions_on(logits_NTV.device)
        rows_P, columns_P = is_wanted_NT.nonzero(as_tuple=True)
        for start in range(0, len(targets), chunk):
            places = rows_P[start : start + chunk], columns_P[start : start + chunk]
            logits_CV = upcast(logits_NTV[places])
            sums += losses_to_gradient(logits_CV, targets.slice(start, start + chunk), loss)
            if gradient_NTV is not None:
                gradient_NTV[places] = logits_CV.to(gradient_NTV.dtype)
        if gradient_NTV is not None:
            ctx.save_for_backward(gradient_NTV)
        soft_sum, label_sum = sums
        total: Tensor = loss.soft_weight * loss.temperature**2 * soft_sum + loss.label_weight * label_sum
        return total.to(upcast(logits_NTV[:0]).dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_NTV,) = ctx.saved_tensors
        return gradient_NTV.mul_(grad_total), *[None] * 4
