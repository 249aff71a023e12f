"""Schemes that make the teacher's distribution sparse. Each scheme is defined by the gradient that a student receives.

Shape legend: C positions of a chunk, V vocabulary, K kept entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pipeline.producers.sparsify import sparsify
from scripts.study.stored_bytes import draw_counts_bytes, payload_bytes

MANTISSA_BITS = 6
_MOST_DRAWS = 50


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """The teacher's distributions at a chunk of positions, computed once for all schemes.

    logprobs, probs [C, V]; uniforms [C, 50] float64; label_ids [C].
    """

    logprobs: Tensor
    probs: Tensor
    uniforms: Tensor
    label_ids: Tensor

    @cached_property
    def top(self) -> tuple[Tensor, Tensor]:
        """The largest log-probabilities and their ids, both [C, min(128, V)]."""
        logprobs, ids = self.logprobs.topk(min(128, self.logprobs.shape[1]), dim=1)
        return logprobs, ids

    @cached_property
    def drawn_ids(self) -> Tensor:
        """Ids [C, 50] drawn with replacement from the teacher's distribution."""
        running_CV = self.probs.cumsum(1, dtype=torch.float64)
        ids = torch.searchsorted(running_CV, self.uniforms * running_CV[:, -1:], right=True)
        return ids.clamp_(max=running_CV.shape[1] - 1)

    @classmethod
    def of(cls, logprobs_CV: Tensor, uniforms: Tensor, label_ids_C: Tensor) -> Teaching:
        """Compute probabilities from the teacher's log-probabilities."""
        return cls(logprobs=logprobs_CV, probs=logprobs_CV.exp(), uniforms=uniforms, label_ids=label_ids_C)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A way to turn the teacher's log-probabilities into a target.

    gradient(student's softmax [C, V], Teaching): ∂loss/∂logits [C, V].
    stored_bytes(Teaching, T): bytes per token on disk, for blocks of T targets; None when the scheme stores nothing.
    """

    name: str
    gradient: Callable[[Tensor, Teaching], Tensor]
    stored_bytes: Callable[[Teaching, int], float] | None = None


def all_schemes() -> list[Scheme]:
    """Return every scheme of the comparison."""
    return [
        _labels_only(),
        _full(),
        *[_top_k(k, renormalised=True) for k in (12, 50)],
        *[_top_k(k, renormalised=False) for k in (6, 12, 25, 50)],
        *[_random_sampling(draws) for draws in (12, 25, _MOST_DRAWS)],
        *[_sampled_tail(0, denominator) for denominator in (8, 16, 32, 64)],
        *[_sampled_tail(16, denominator) for denominator in (16, 32)],
        _fitted_curve(k=128, num_exact=16, degree=5),
        _fitted_curve(k=64, num_exact=16, degree=5),
        _fitted_curve(k=50, num_exact=1, degree=2),
    ]


def with_labels(scheme: Scheme, weight: float) -> Scheme:
    """Return a scheme whose loss is `weight` times that of the labels more."""
    labels_only = _labels_only()

    def gradient(softmax_CV: Tensor, teaching: Teaching) -> Tensor:
        return scheme.gradient(softmax_CV, teaching) + weight * labels_only.gradient(softmax_CV, teaching)

    return Scheme(name=f"{scheme.name} + {weight:g} ce", gradient=gradient)


def _cross_entropy_gradient(softmax_CV: Tensor, ids_CK: Tensor, weights_CK: Tensor) -> Tensor:
    """Return ∂/∂z of −Σ q log s, where s = softmax(z) and q is given by ids and weights."""
    gradient_CV = softmax_CV * weights_CK.sum(1, keepdim=True)
    return gradient_CV.scatter_add_(1, ids_CK, -weights_CK)


def _round(logprobs: Tensor) -> Tensor:
    """Round as storage.rows.bit_rounding does, on the device."""
    bits = logprobs.half().view(torch.int16).int() & 0xFFFF
    dropped = 10 - MANTISSA_BITS
    rounded = (bits + (1 << (dropped - 1)) - 1 + ((bits >> dropped) & 1)) >> dropped << dropped
    return rounded.to(torch.int16).view(torch.float16).float()


def _labels_only() -> Scheme:
    def gradient(softmax_CV: Tensor, teaching: Teaching) -> Tensor:
        labels_C1 = teaching.label_ids[:, None]
        return _cross_entropy_gradient(softmax_CV, labels_C1, torch.ones_like(labels_C1, dtype=softmax_CV.dtype))

    return Scheme(name="ce", gradient=gradient)


def _full() -> Scheme:
    def gradient(softmax_CV: Tensor, teaching: Teaching) -> Tensor:
        return softmax_CV - teaching.probs

    return Scheme(name="full", gradient=gradient)


def _top_k(k: int, *, renormalised: bool) -> Scheme:
    def gradient(softmax_CV: Tensor, teaching: Teaching) -> Tensor:
        logprobs_CK, ids_CK = (column[:, :k] for column in teaching.top)
        p_CK = _round(logprobs_CK).exp()
        if renormalised:
            return _cross_entropy_gradient(softmax_CV, ids_CK, p_CK / p_CK.sum(1, keepdim=True))
        # ∂/∂z of the KL with the tail as one bucket: s − p on the head, s (1 − r / s_tail) elsewhere.
        s_CK = softmax_CV.gather(1, ids_CK)
        tail_C1 = softmax_CV.scatter(1, ids_CK, 0.0).sum(1, keepdim=True)
        r_C1 = (1 - p_CK.sum(1, keepdim=True)).clamp(min=0)
        return (softmax_CV * (1 - r_C1 / tail_C1)).scatter_(1, ids_CK, s_CK - p_CK)

    def stored_bytes(teaching: Teaching, block_size: int) -> float:
        return _our_bytes(teaching, block_size, top_k=k, tail_weight=None)

    name = f"topk_{'renorm' if renormalised else 'bucket'}_{k}"
    return Scheme(name=name, gradient=gradient, stored_bytes=stored_bytes)


def _random_sampling(draws: int) -> Scheme:
    """Random-sampling KD (Anshumann et al., ACL 2025): draws with replacement, each with weight 1 / draws."""

    def gradient(softmax_CV: Tensor, teaching: Teaching) -> Tensor:
        ids = teaching.drawn_ids[:, :draws]
        return _cross_entropy_gradient(softmax_CV, ids, torch.full(ids.shape, 1 / draws, device=ids.device))

    def stored_bytes(teaching: Teaching, block_size: int) -> float:
        return draw_counts_bytes(teaching.drawn_ids[:, :draws].cpu().numpy(), teaching.logprobs.shape[1], block_size)

    return Scheme(name=f"random_sampling_{draws}", gradient=gradient, stored_bytes=stored_bytes)


def _sampled_tail(top_k: int, denominator: int) -> Scheme:
    """The project's targets: an exact head and a systematic draw at weight τ = 1 / denominator."""

    def gradient(softmax_CV: Tensor, teaching: Teaching) -> Tensor:
        found = sparsify(
            teaching.logprobs.clone(),
            teaching.label_ids,
            teaching.uniforms[:, 0],
            top_k=top_k,
            tail_weight=1 / denominator,
            temperatures=(1.0,),
        )
        head_CK = _round(found.head_logprobs).exp() * found.is_head
        weights = torch.cat([head_CK, found.is_drawn.float() / denominator], dim=1)
        return _cross_entropy_gradient(softmax_CV, torch.cat([found.head_ids, found.tail_ids], dim=1), weights)

    def stored_bytes(teaching: Teaching, block_size: int) -> float:
        return _our_bytes(teaching, block_size, top_k=top_k, tail_weight=1 / denominator)

    return Scheme(name=f"tail_{denominator}_top_{top_k}", gradient=gradient, stored_bytes=stored_bytes)


def _fitted_curve(*, k: int, num_exact: int, degree: int) -> Scheme:
    """DistillKit's top-k: `num_exact` exact values, a polynomial in rank for the rest, renormalised.

    This is a reconstruction from the published sizes: 2 bytes per id and per exact value, 4 per coefficient (312 bytes
    at k = 128, 184 at 64, 114 at 50). It is fitted in float64, which avoids the bad conditioning of the original.
    """

    def gradient(softmax_CV: Tensor, teaching: Teaching) -> Tensor:
        top_CK, ids_CK = (column[:, :k] for column in teaching.top)
        rank = torch.linspace(-1, 1, k - num_exact, device=top_CK.device, dtype=torch.float64)
        basis = torch.stack([rank**d for d in range(degree + 1)], dim=1)
        projection = basis @ torch.linalg.pinv(basis)
        fitted = (top_CK[:, num_exact:].double() @ projection.T).float()
        p_CK = torch.softmax(torch.cat([top_CK[:, :num_exact], fitted], dim=1), dim=1)
        return _cross_entropy_gradient(softmax_CV, ids_CK, p_CK)

    def stored_bytes(teaching: Teaching, block_size: int) -> float:
        return 2.0 * k + 2.0 * num_exact + 4.0 * (degree + 1)

    return Scheme(name=f"fitted_curve_{k}", gradient=gradient, stored_bytes=stored_bytes)


def _our_bytes(teaching: Teaching, block_size: int, *, top_k: int, tail_weight: float | None) -> float:
    """Return the bytes per token of ids, logprobs and sizes in a shard of this project."""
    found = sparsify(
        teaching.logprobs.clone(),
        teaching.label_ids,
        teaching.uniforms[:, 0],
        top_k=top_k,
        tail_weight=tail_weight,
        temperatures=(1.0,),
    )
    return payload_bytes(found.flatten(), teaching.logprobs.shape[1], block_size, MANTISSA_BITS)
