"""Sparse targets at a temperature against the full distribution at that temperature."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from student.losses.targets import SparseTargets

VOCAB, POSITIONS = 23, 6


def exact_targets(logits: Tensor, head_sizes: list[int], temperature: float) -> SparseTargets:
    """Targets without rounding, built position by position; padding is filled with ids that must not matter."""
    logp = torch.log_softmax(logits, dim=1)
    most = max(head_sizes)
    ids = torch.full((len(logits), most), 5)
    logprobs = torch.full((len(logits), most), -0.5, dtype=logits.dtype)
    is_head = torch.zeros(len(logits), most, dtype=torch.bool)
    tails, tempered = [], []
    for c, size in enumerate(head_sizes):
        head = sorted(logp[c].argsort(descending=True)[:size].tolist())
        rest = [i for i in range(logits.shape[1]) if i not in head]
        ids[c, :size], is_head[c, :size] = torch.tensor(head, dtype=torch.int64), True
        logprobs[c, :size] = logp[c, head]
        tails.append(logp[c, rest].logsumexp(0))
        tempered.append((logp[c, rest] / temperature).logsumexp(0))
    return SparseTargets(
        head_ids=ids,
        head_logprobs=logprobs,
        is_head=is_head,
        tail_logprob=torch.stack(tails),
        tail_ids=torch.zeros(len(logits), 0, dtype=torch.int64),
        is_drawn=torch.zeros(len(logits), 0, dtype=torch.bool),
        tail_weight=None,
        tempered_tail_logmass=torch.stack(tempered),
        label_ids=torch.arange(len(logits)),
    )


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(POSITIONS, VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


HEADS = [[4] * 6, [1] * 6, [0, 3, 1, 23, 5, 22], [23] * 6, [0] * 6]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0, 7.0])
@pytest.mark.parametrize("head_sizes", HEADS)
def test_coarse_logprobs_are_the_coarse_graining_of_the_tempered_softmax(
    logits: Tensor, head_sizes: list[int], temperature: float
) -> None:
    targets = exact_targets(logits, head_sizes, temperature)
    found = targets.coarse_logprobs(temperature)
    probs = torch.softmax(logits / temperature, dim=1)
    assert found.shape == (POSITIONS, max(head_sizes) + 1)
    for c, size in enumerate(head_sizes):
        head = targets.head_ids[c, :size]
        torch.testing.assert_close(found[c, :size].exp(), probs[c, head], atol=1e-14, rtol=1e-11)
        assert torch.all(found[c, size:-1] == -torch.inf)
        rest = [i for i in range(VOCAB) if i not in head.tolist()]
        torch.testing.assert_close(found[c, -1].exp(), probs[c, rest].sum(), atol=1e-14, rtol=1e-11)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(POSITIONS, dtype=torch.float64))


def test_coarse_logprobs_take_out_what_rounding_did_to_the_mass(logits: Tensor) -> None:
    targets = exact_targets(logits, [4] * 6, 1.0)
    rounded = dataclasses.replace(targets, head_logprobs=targets.head_logprobs.to(torch.bfloat16).double())
    assert (rounded.head_logprobs.exp().sum(1) + rounded.tail_logprob.exp() - 1).abs().max() > 1e-4
    torch.testing.assert_close(rounded.coarse_logprobs(1.0).exp().sum(1), torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sampled_weights_are_the_heads_probabilities_and_one_weight_for_each_draw(
    logits: Tensor, temperature: float
) -> None:
    head_sizes = [2, 0, 3, 1, 3, 2]
    drawn = [[4, 9], [1, 2, 3], [], [22], [0], [7, 8]]
    tail_ids = torch.tensor([[*ids, *[5] * (3 - len(ids))] for ids in drawn])
    is_drawn = torch.tensor([[True] * len(ids) + [False] * (3 - len(ids)) for ids in drawn])
    targets = dataclasses.replace(
        exact_targets(logits, head_sizes, temperature), tail_ids=tail_ids, is_drawn=is_drawn, tail_weight=0.04
    )
    ids, weights = targets.sampled_weights(temperature)
    probs = torch.softmax(logits / temperature, dim=1)
    for c, size in enumerate(head_sizes):
        dense = torch.zeros(VOCAB, dtype=torch.float64).index_add(0, ids[c], weights[c])
        expected = torch.zeros(VOCAB, dtype=torch.float64)
        expected[drawn[c]] += 0.04
        head = targets.head_ids[c, :size]
        expected[head] += probs[c, head]
        torch.testing.assert_close(dense, expected, atol=1e-14, rtol=1e-11)


def test_slices_hold_the_same_positions(logits: Tensor) -> None:
    targets = exact_targets(logits, [2, 0, 3, 1, 3, 2], 2.0)
    assert len(targets) == POSITIONS
    for start, stop in [(0, 2), (2, 6), (5, 9), (0, 6)]:
        part = targets.slice(start, stop)
        assert len(part) == min(stop, POSITIONS) - start
        for field in dataclasses.fields(SparseTargets):
            whole, found = getattr(targets, field.name), getattr(part, field.name)
            if isinstance(whole, Tensor):
                assert torch.equal(found, whole[start:stop])
            else:
                assert found == whole


def test_labels_alone_hold_no_teacher() -> None:
    targets = SparseTargets.labels_only(torch.tensor([3, 1, 4]))
    assert len(targets) == 3
    assert targets.head_ids.shape == targets.tail_ids.shape == (3, 0)
    assert targets.label_ids.tolist() == [3, 1, 4]
    assert len(targets.slice(1, 3)) == 2
