"""Packed blocks: every way of running them gives each document what it gets alone, with its gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from storage.tensors.packing import Isolation, isolated_hidden_states
from tests.storage.tensors.bodies import Sums

# Each block's documents, and the tokens of padding at its end.
BLOCKS = [([8], 0), ([1, 4, 3], 0), ([5, 1], 2), ([2], 6)]


def positions_of(blocks: list[tuple[list[int], int]]) -> Tensor:
    rows = [[*(p for length in lengths for p in range(length)), *[-1] * padding] for lengths, padding in blocks]
    return torch.tensor(rows)


def alone(body: Sums, ids_NT: Tensor, blocks: list[tuple[list[int], int]]) -> Tensor:
    found = []
    for ids_T, (lengths, _) in zip(ids_NT, blocks, strict=True):
        for ids in torch.split(ids_T[: sum(lengths)], lengths):
            found.append(body(ids[None], use_cache=False).last_hidden_state[0])
    return torch.cat(found)


@pytest.mark.parametrize("isolation", Isolation)
def test_each_document_gets_what_it_gets_alone_and_so_does_the_gradient(isolation: Isolation) -> None:
    body, positions = Sums(packs=isolation is Isolation.PACKED), positions_of(BLOCKS)
    ids = torch.arange(positions.numel()).view(positions.shape) * 7 % 11
    found = isolated_hidden_states(body, ids, positions, isolation)
    assert found.shape == (*ids.shape, 2)
    expected = alone(body, ids, BLOCKS)
    torch.testing.assert_close(found[positions >= 0], expected, rtol=0, atol=0)
    weights = torch.rand(expected.shape, dtype=torch.float64)
    gradients = [torch.autograd.grad((h * weights).sum(), body.weight)[0] for h in (found[positions >= 0], expected)]
    torch.testing.assert_close(*gradients)


@given(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=12), min_size=1, max_size=4))
def test_passes_hold_no_more_tokens_than_the_blocks_and_little_padding(lengths: list[list[int]]) -> None:
    longest = max(map(sum, lengths))
    positions = positions_of([(part, longest - sum(part)) for part in lengths])
    body, ids = Sums(packs=False), torch.zeros(positions.shape, dtype=torch.int64)
    isolated_hidden_states(body, ids, positions, Isolation.ROWS)
    read = [rows * length for rows, length in body.shapes]
    assert max(read) <= ids.numel()
    assert sum(read) * 0.75 <= int((positions >= 0).sum())
    assert sum(rows for rows, _ in body.shapes) == sum(map(len, lengths))


def test_rows_of_one_length_are_never_padded() -> None:
    body, positions = Sums(packs=False), positions_of([([5, 4, 5, 4], 0), ([3, 5, 5, 5], 0)])
    isolated_hidden_states(body, torch.zeros_like(positions), positions, Isolation.EQUAL_ROWS)
    assert body.shapes == [(5, 5), (2, 4), (1, 3)]


def test_a_pass_of_packed_blocks_is_one_pass_with_their_positions() -> None:
    body, positions = Sums(packs=True), positions_of([([2, 3], 0), ([4], 1)])
    isolated_hidden_states(body, torch.zeros_like(positions), positions, Isolation.PACKED)
    assert body.shapes == [(2, 5)]


def test_the_sums_of_these_tests_are_kept_apart_by_positions() -> None:
    found = Sums(packs=True).hidden(torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[0, 1, 0, 1]]))
    np.testing.assert_array_equal(found[0, :, 0].detach(), [1, 3, 3, 7])
