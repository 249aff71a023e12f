"""Log-probabilities of given tokens against autograd through a dense log-softmax."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from storage.tensors.output_head import OutputHead
from student.losses import core_threads
from student.losses.token_logprobs import token_logprobs
from tests.operator_threads import operator_threads


def make(num_positions: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, head weight, tokens, upstream gradient."""
    g = torch.Generator().manual_seed(0)
    hidden, weight, upstream = (
        torch.randn(*shape, dtype=torch.float64, generator=g).to(dtype)
        for shape in ((num_positions, 5), (13, 5), (num_positions,))
    )
    return hidden, weight, torch.randint(13, (num_positions,), generator=g), upstream


def dense(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    return torch.log_softmax(hidden @ weight.T, dim=1)[torch.arange(len(ids)), ids]


def plain(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    return token_logprobs(hidden, OutputHead(weight_VD=weight), ids)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("num_positions", [1, 2, 511, 512, 513, 1100])
def test_values_and_gradients_equal_the_dense_truth(
    monkeypatch: pytest.MonkeyPatch, num_positions: int, num_threads: int
) -> None:
    monkeypatch.setattr(core_threads, "_LEAST_NUMBERS", 0)
    hidden, weight, ids, upstream = make(num_positions)
    results = []
    for function in (plain, dense):
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        with operator_threads(num_threads):
            values = function(*leaves, ids)
            results.append((values.detach(), *torch.autograd.grad((values * upstream).sum(), leaves)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_a_loss_that_is_not_a_plain_sum_gets_its_gradient() -> None:
    hidden, weight, ids, _ = make(9)
    results = []
    for function in (plain, dense):
        leaf = hidden.clone().requires_grad_()
        scores = function(leaf, weight, ids).reshape(3, 3).sum(1)
        results.append(torch.autograd.grad(-torch.log_softmax(scores, 0)[1], leaf)[0])
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)


def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_the_same() -> None:
    hidden, weight, ids, upstream = make(9)
    found = []
    for is_trained in (True, False):
        leaf, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_(is_trained)
        (plain(leaf, head, ids) * upstream).sum().backward()
        assert (head.grad is not None) == is_trained
        found.append(leaf.grad)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_other_precisions_stay_close() -> None:
    hidden, weight, ids, upstream = make(64, torch.float32)
    exact = dense(hidden.double(), weight.double(), ids)
    single = plain(hidden, weight, ids)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-5)
    leaf = hidden.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = plain(leaf, weight, ids)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double().detach(), exact, rtol=0.03, atol=0.05)
    (half * upstream).sum().backward()
    expected_leaf = hidden.double().requires_grad_()
    (dense(expected_leaf, weight.double(), ids) * upstream.double()).sum().backward()
    largest = float(expected_leaf.grad.abs().max())
    torch.testing.assert_close(leaf.grad.double(), expected_leaf.grad, rtol=0, atol=0.03 * largest)


def test_bias_scale_and_cap_get_the_gradient_of_autograd() -> None:
    hidden, weight, ids, upstream = make(600)
    bias = torch.randn(13, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for is_ours in (True, False):
        leaves = h, w, b = [tensor.clone().requires_grad_() for tensor in (hidden, weight, bias)]
        if is_ours:
            values = token_logprobs(h, OutputHead(weight_VD=w, bias_V=b, scale=0.8, cap_nats=1.5), ids)
        else:
            logits = 1.5 * torch.tanh(0.8 * (h @ w.T + b) / 1.5)
            values = torch.log_softmax(logits, dim=1)[torch.arange(len(ids)), ids]
        results.append((values.detach(), *torch.autograd.grad((values * upstream).sum(), leaves)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
