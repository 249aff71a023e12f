"""Divergences over few outcomes against their definitions, and their gradients against autograd, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from student.losses.divergences import DIVERGENCES

# Shares of the teacher in the mixture: the symmetric JSD, and DistiLLM's skew.
JSD_TEACHER_SHARE, SKEW_TEACHER_SHARE = 0.5, 0.1
NAMES = ["forward_kl", "reverse_kl", "jsd", "skew_kl"]


def naive(name: str, p: list[float], q: list[float]) -> float:
    """The definition, outcome by outcome; 0 log 0 = 0."""

    def kl(a: list[float], b: list[float]) -> float:
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)

    def mixture(share: float) -> list[float]:
        return [share * x + (1 - share) * y for x, y in zip(p, q, strict=True)]

    match name:
        case "forward_kl":
            return kl(p, q)
        case "reverse_kl":
            return kl(q, p)
        case "jsd":
            m = mixture(JSD_TEACHER_SHARE)
            return JSD_TEACHER_SHARE * kl(p, m) + (1 - JSD_TEACHER_SHARE) * kl(q, m)
        case _:
            return kl(p, mixture(SKEW_TEACHER_SHARE))


def random_logs(seed: int, num_outcomes: int, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(scale * torch.randn(6, num_outcomes, dtype=torch.float64, generator=generator), dim=1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_outcomes", [1, 2, 3, 17])
def test_values_equal_the_definition(name: str, num_outcomes: int) -> None:
    logp, logq = random_logs(0, num_outcomes), random_logs(1, num_outcomes, 3.0)
    found, _ = DIVERGENCES[name](logp, logq)
    expected = [naive(name, p, q) for p, q in zip(logp.exp().tolist(), logq.exp().tolist(), strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-13, rtol=1e-11)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_outcomes", [2, 3, 17])
def test_gradients_equal_autograd_through_a_softmax(name: str, num_outcomes: int) -> None:
    logp = random_logs(0, num_outcomes)
    weights = random_logs(1, num_outcomes, 3.0).requires_grad_()
    _, gradient = DIVERGENCES[name](logp, torch.log_softmax(weights, dim=1))
    p, q = logp.exp(), torch.softmax(weights, dim=1)
    if name == "forward_kl":
        loss = (p * (p / q).log()).sum()
    elif name == "reverse_kl":
        loss = (q * (q / p).log()).sum()
    else:
        a = JSD_TEACHER_SHARE if name == "jsd" else SKEW_TEACHER_SHARE
        m = a * p + (1 - a) * q
        loss = (p * (p / m).log()).sum()
        if name == "jsd":
            loss = a * loss + (1 - a) * (q * (q / m).log()).sum()
    [expected] = torch.autograd.grad(loss, weights)
    torch.testing.assert_close(gradient, expected, atol=1e-14, rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_equal_distributions_give_nothing(name: str) -> None:
    logp = random_logs(0, 9)
    loss, gradient = DIVERGENCES[name](logp, logp.clone())
    torch.testing.assert_close(loss, torch.zeros(6, dtype=torch.float64), atol=1e-14, rtol=0)
    torch.testing.assert_close(gradient, torch.zeros(6, 9, dtype=torch.float64), atol=1e-14, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_outcomes_masked_in_both_count_nothing(name: str) -> None:
    logp, logq = random_logs(0, 4), random_logs(1, 4)
    nothing = torch.full((6, 3), -torch.inf, dtype=torch.float64)
    expected_loss, expected_gradient = DIVERGENCES[name](logp, logq)
    loss, gradient = DIVERGENCES[name](torch.cat([nothing, logp], 1), torch.cat([nothing, logq], 1))
    torch.testing.assert_close(loss, expected_loss, atol=1e-15, rtol=1e-14)
    torch.testing.assert_close(gradient[:, 3:], expected_gradient, atol=1e-15, rtol=1e-14)
    assert torch.all(gradient[:, :3] == 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gap", [50.0, 100.0, 1000.0])
def test_confident_distributions_stay_finite_in_float32(name: str, gap: float) -> None:
    near = torch.log_softmax(torch.tensor([[gap, 0.0, 1.0]]), dim=1)
    far = torch.log_softmax(torch.tensor([[0.0, gap, 1.0]]), dim=1)
    for logp, logq in ((near, far), (far, near), (near, near)):
        loss, gradient = DIVERGENCES[name](logp, logq)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()
        assert loss.item() >= 0


@pytest.mark.parametrize("name", NAMES)
def test_no_divergence_is_negative_and_the_gradient_of_the_total_weight_is_zero(name: str) -> None:
    loss, gradient = DIVERGENCES[name](random_logs(3, 12, 5.0), random_logs(4, 12, 5.0))
    assert loss.min() > 0
    torch.testing.assert_close(gradient.sum(1), torch.zeros(6, dtype=torch.float64), atol=1e-13, rtol=0)
