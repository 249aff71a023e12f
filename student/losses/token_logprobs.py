"""Log-probabilities of given tokens with gradient, without holding logits of [P, V].

Use this where the loss is not a plain sum over positions, such as choosing among candidates. The backward pass computes
the logits of each chunk again instead of keeping them.

Shape legend: P positions, C positions of a chunk, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from storage.tensors.output_head import OutputHead
from student.losses.core_threads import parts_of, run_parts
from student.losses.head_matmul import (
    ChunkedHead,
    HeadGradients,
    chunk_positions_on,
    matmul_dtype_of,
    softmax_,
    upcast,
)


def token_logprobs(hidden_PD: Tensor, head: OutputHead, token_ids_P: Tensor) -> Tensor:
    """Return the logs of softmax(logits) at the given tokens [P] in nats: float64 for float64 input, else float32."""
    logprobs: Tensor = _TokenLogprobs.apply(hidden_PD, head.weight_VD, head.bias_V, head, token_ids_P)  # type: ignore[no-untyped-call]
    return logprobs


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_PD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        head: OutputHead,
        token_ids_P: Tensor,
    ) -> Tensor:
        ctx.head, ctx.matmul_dtype = head, matmul_dtype_of(hidden_PD)
        ctx.save_for_backward(hidden_PD, weight_VD, bias_V, token_ids_P)
        parts = [upcast(hidden_PD.new_empty(0))]
        for positions, logits_CV in _chunked(hidden_PD, head, ctx.matmul_dtype).chunks():
            run = partial(_logprobs_of_rows, logits_CV, token_ids_P[positions])
            parts += run_parts(run, parts_of(len(logits_CV), logits_CV))
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor | None, ...]:
        hidden_PD, weight_VD, bias_V, token_ids_P = ctx.saved_tensors
        head = replace(ctx.head, weight_VD=weight_VD, bias_V=bias_V)
        gradients = HeadGradients.to_fill(hidden_PD, head)
        chunked = _chunked(hidden_PD, head, ctx.matmul_dtype)
        for positions, logits_CV in chunked.chunks():
            grad_C = grad_P[positions].to(logits_CV.dtype)
            run = partial(_gradient_of_rows, logits_CV, token_ids_P[positions], grad_C)
            run_parts(run, parts_of(len(logits_CV), logits_CV))
            chunked.add_gradients(positions, logits_CV, gradients)
        return gradients.hidden_PD, gradients.weight_VD, gradients.bias_V, None, None


def _logprobs_of_rows(logits_CV: Tensor, token_ids_C: Tensor, rows: slice) -> Tensor:
    token_logit_C1 = logits_CV[rows].gather(1, token_ids_C[rows, None])
    return (token_logit_C1 - softmax_(logits_CV[rows]))[:, 0]


def _gradient_of_rows(logits_CV: Tensor, token_ids_C: Tensor, grad_C: Tensor, rows: slice) -> None:
    """Overwrite rows of the logits with their gradient: ∂ log s(y) / ∂z = onehot(y) − s, where s = softmax(z)."""
    softmax_(logits_CV[rows], -grad_C[rows, None])
    logits_CV[rows].scatter_add_(1, token_ids_C[rows, None], grad_C[rows, None])


def _chunked(hidden_PD: Tensor, head: OutputHead, matmul_dtype: torch.dtype) -> ChunkedHead:
    chunk = chunk_positions_on(hidden_PD.device)
    return ChunkedHead(hidden_PD, head, matmul_dtype=matmul_dtype, chunk_positions=chunk)
