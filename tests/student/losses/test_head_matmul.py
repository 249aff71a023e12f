"""The head's chunks, and the sums that every loss behind it starts from, against float64."""

from __future__ import annotations

import pytest
import torch

from storage.tensors.output_head import OutputHead
from student.losses import head_matmul
from student.losses.head_matmul import ChunkedHead, HeadGradients, softmax_


@pytest.mark.parametrize("offset", [0.0, -100.0, 3000.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("cache_bytes", [1, 1 << 20])
def test_softmax_and_its_log_partition(
    monkeypatch: pytest.MonkeyPatch, offset: float, dtype: torch.dtype, cache_bytes: int
) -> None:
    """In as few rows at a time as there are threads, and in all rows at once."""
    monkeypatch.setattr(head_matmul, "_CACHE_BYTES_PER_THREAD", cache_bytes)
    generator = torch.Generator().manual_seed(0)
    logits = (10 * torch.randn(7, 301, generator=generator, dtype=torch.float64) + offset).to(dtype)
    logits[0, 1:] = logits[1, ::2] = -torch.inf
    mass = torch.linspace(-1.0, 2.0, 7, dtype=dtype)[:, None]
    probs, log_partition = torch.softmax(logits.double(), 1), logits.double().logsumexp(1, keepdim=True)
    rtol = 1e-5 if dtype == torch.float32 else 1e-13
    for given, factor in ((None, torch.ones_like(mass)), (mass, mass)):
        overwritten = logits.clone()
        found = softmax_(overwritten, given)
        torch.testing.assert_close(found.double(), log_partition, rtol=rtol, atol=0.0)
        torch.testing.assert_close(overwritten.double(), factor.double() * probs, rtol=rtol, atol=1e-30)


def test_a_row_without_mass_has_none() -> None:
    logits = torch.full((2, 5), -torch.inf)
    logits[1, 3] = 2.0
    assert softmax_(logits).tolist() == [[-torch.inf], [2.0]]
    assert logits.tolist() == [[0.0] * 5, [0.0, 0.0, 0.0, 1.0, 0.0]]


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("num_positions", [0, 1, 7])
@pytest.mark.parametrize(("matmul_dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_chunks_cover_all_positions(
    num_positions: int, chunk: int, matmul_dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(num_positions, 6, generator=generator), torch.randn(11, 6, generator=generator)
    upstream = torch.randn(num_positions, 11, generator=generator)
    plain = OutputHead(weight_VD=weight.requires_grad_())
    gradients = HeadGradients.to_fill(hidden, plain)
    assert gradients.weight_VD is not None
    gradients.hidden_PD.fill_(torch.nan)
    head = ChunkedHead(hidden, plain, matmul_dtype=matmul_dtype, chunk_positions=chunk)
    found = [torch.empty(0, 11)]
    for positions, logits in head.chunks():
        found.append(logits.clone())
        logits.copy_(upstream[positions])
        head.add_gradients(positions, logits, gradients)
    expected = (hidden.double() @ weight.double().T, upstream.double() @ weight.double())
    close = {"rtol": tolerance, "atol": 2 * tolerance}
    torch.testing.assert_close(torch.cat(found).double(), expected[0], **close)
    torch.testing.assert_close(gradients.hidden_PD.double(), expected[1], **close)
    torch.testing.assert_close(gradients.weight_VD.double(), upstream.double().T @ hidden.double(), **close)


@pytest.mark.parametrize(("weight_learns", "bias_learns"), [(False, False), (False, True), (True, False)])
def test_what_does_not_learn_costs_no_memory_for_its_gradient(weight_learns: bool, bias_learns: bool) -> None:
    head = OutputHead(
        weight_VD=torch.ones(11, 6, requires_grad=weight_learns), bias_V=torch.ones(11, requires_grad=bias_learns)
    )
    gradients = HeadGradients.to_fill(torch.ones(3, 6), head)
    assert (gradients.weight_VD is not None, gradients.bias_V is not None) == (weight_learns, bias_learns)
