"""Divergences between two distributions over the same few outcomes, with their gradients.

P is the teacher's distribution over the K head ids and one outcome for all other ids. Q is the student's distribution
over the same outcomes, the softmax of their log-weights u. Each function takes log P and log Q [C, O]. It returns the
loss in nats [C] and its gradient with respect to u [C, O]:

    ∂L/∂u_b = Q_b (g_b − Σ_c Q_c g_c),   g_b = ∂L/∂Q_b.

By the data-processing inequality, each divergence is at most its value on the full vocabulary. A masked outcome has
log-probability −inf in both distributions and adds nothing.

Shape legend: C positions, K head ids, O = K + 1 outcomes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Divergence = Literal["forward_kl", "reverse_kl", "jsd", "skew_kl"]
# Share a of the teacher in the mixture M = a P + (1 − a) Q.
JSD_TEACHER_SHARE = 0.5
SKEW_TEACHER_SHARE = 0.1

LossAndGradient = tuple[Tensor, Tensor]


def forward_kl(logp_CO: Tensor, logq_CO: Tensor) -> LossAndGradient:
    """Return KL(P‖Q) = Σ P log(P/Q) [C] and its gradient Q − P [C, O]."""
    p_CO, q_CO = logp_CO.exp(), logq_CO.exp()
    loss_C = _weighted(p_CO, _difference(logp_CO, logq_CO)).sum(1)
    return loss_C, q_CO - p_CO


def reverse_kl(logp_CO: Tensor, logq_CO: Tensor) -> LossAndGradient:
    """Return R = KL(Q‖P) [C] (MiniLLM, Gu et al. 2024, equation 1) and its gradient Q (log(Q/P) − R) [C, O]."""
    q_CO, ratio_CO = logq_CO.exp(), _difference(logq_CO, logp_CO)
    loss_C = _weighted(q_CO, ratio_CO).sum(1)
    return loss_C, _weighted(q_CO, ratio_CO) - q_CO * loss_C[:, None]


def jsd(logp_CO: Tensor, logq_CO: Tensor) -> LossAndGradient:
    """Return a KL(P‖M) + (1 − a) KL(Q‖M) [C] (GKD, Agarwal et al. 2024, equation 2), a = JSD_TEACHER_SHARE.

    The gradient [C, O] is (1 − a) Q (log(Q/M) − KL(Q‖M)).
    """
    a = JSD_TEACHER_SHARE
    logm_CO = _log_mixture(logp_CO, logq_CO, a)
    p_CO, q_CO = logp_CO.exp(), logq_CO.exp()
    ratio_CO = _difference(logq_CO, logm_CO)
    to_mixture_C = _weighted(q_CO, ratio_CO).sum(1)
    loss_C = a * _weighted(p_CO, _difference(logp_CO, logm_CO)).sum(1) + (1 - a) * to_mixture_C
    return loss_C, (1 - a) * (_weighted(q_CO, ratio_CO) - q_CO * to_mixture_C[:, None])


def skew_kl(logp_CO: Tensor, logq_CO: Tensor) -> LossAndGradient:
    """Return KL(P‖M) [C], M = a P + (1 − a) Q (DistiLLM, Ko et al. 2024, equation 3), a = SKEW_TEACHER_SHARE.

    The gradient [C, O] is (1 − a) Q (Σ Q P/M − P/M).
    """
    a = SKEW_TEACHER_SHARE
    logm_CO = _log_mixture(logp_CO, logq_CO, a)
    p_CO, q_CO = logp_CO.exp(), logq_CO.exp()
    loss_C = _weighted(p_CO, _difference(logp_CO, logm_CO)).sum(1)
    ratio_CO = (logp_CO - logm_CO.masked_fill(logm_CO == -torch.inf, 0.0)).exp()
    mean_C1 = (q_CO * ratio_CO).sum(1, keepdim=True)
    return loss_C, (1 - a) * q_CO * (mean_C1 - ratio_CO)


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], LossAndGradient]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "skew_kl": skew_kl,
}


def _difference(loga: Tensor, logb: Tensor) -> Tensor:
    """Return log(A/B), or 0 where A has no mass."""
    return torch.where(loga == -torch.inf, 0.0, loga - logb)


def _weighted(weight: Tensor, value: Tensor) -> Tensor:
    return torch.where(weight > 0, weight * value, 0.0)


def _log_mixture(logp_CO: Tensor, logq_CO: Tensor, teacher_share: float) -> Tensor:
    share = torch.as_tensor(teacher_share, dtype=logp_CO.dtype)
    return torch.logaddexp(logp_CO + share.log(), logq_CO + (1 - share).log())
