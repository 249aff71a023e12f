"""Log-probabilities of given tokens with gradient, without holding [P, V].

Used where the loss is not a plain sum over positions (choosing among candidates). The backward pass
computes the logits of a chunk again instead of keeping them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from student.losses.head_matmul import add_product, chunk_positions_on, matmul_dtype_of, upcast


def token_logprobs(hidden_PD: Tensor, head_weight_VD: Tensor, token_ids_P: Tensor) -> Tensor:
    """log s(token) [P] in nats: float64 for float64 input, float32 otherwise."""
    logprobs: Tensor = _TokenLogprobs.apply(hidden_PD, head_weight_VD, token_ids_P)  # type: ignore[no-untyped-call]
    return logprobs


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_PD: Tensor, head_weight_VD: Tensor, token_ids_P: Tensor) -> Tensor:
        ctx.matmul_dtype = matmul_dtype_of(hidden_PD)
        ctx.save_for_backward(hidden_PD, head_weight_VD, token_ids_P)
        weight_VD = head_weight_VD.to(ctx.matmul_dtype)
        parts = []
        for hidden_CD, ids_C in _chunks(hidden_PD, token_ids_P):
            logits_CV = upcast(hidden_CD.to(ctx.matmul_dtype) @ weight_VD.T)
            parts.append(logits_CV.gather(1, ids_C[:, None])[:, 0] - logits_CV.logsumexp(dim=1))
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor, Tensor, None]:
        """∂ log s(y) / ∂z = onehot(y) − s."""
        hidden_PD, head_weight_VD, token_ids_P = ctx.saved_tensors
        weight_VD = head_weight_VD.to(ctx.matmul_dtype)
        grad_hidden_PD, grad_weight_VD = torch.empty_like(hidden_PD), torch.zeros_like(head_weight_VD)
        start = 0
        for hidden_CD, ids_C in _chunks(hidden_PD, token_ids_P):
            chunk_CD = hidden_CD.to(ctx.matmul_dtype)
            stop = start + len(ids_C)
            grad_C1 = grad_P[start:stop, None]
            gradient_CV = torch.softmax(upcast(chunk_CD @ weight_VD.T), dim=1).mul_(-grad_C1)
            gradient_CV.scatter_add_(1, ids_C[:, None], grad_C1.to(gradient_CV.dtype))
            grad_CV = gradient_CV.to(ctx.matmul_dtype)
            grad_hidden_PD[start:stop] = grad_CV @ weight_VD
            add_product(grad_weight_VD, grad_CV, chunk_CD)
            start = stop
        return grad_hidden_PD, grad_weight_VD, None


def _chunks(hidden_PD: Tensor, token_ids_P: Tensor) -> list[tuple[Tensor, Tensor]]:
    size = chunk_positions_on(hidden_PD.device)
    return list(zip(torch.split(hidden_PD, size), torch.split(token_ids_P, size), strict=True))
