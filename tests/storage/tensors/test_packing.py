"""Packed blocks: every way of running them gives each document what it gets alone, with its gradient."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModel

from scripts.support.measure import peak_extra_bytes
from storage.tensors.packing import LONGEST_MASKED, Isolation, isolated_hidden_states
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


def test_long_blocks_of_several_documents_need_no_mask_over_the_whole_row() -> None:
    """They run a document a row, unless all must run in one pass. Blocks of one document, padded or not, run whole."""
    length = LONGEST_MASKED + 1
    blocks = [([length], 0), ([1000, 40, length - 1040], 0), ([1500, 500], length - 2000)]
    positions = positions_of(blocks)
    ids = torch.arange(positions.numel()).view(positions.shape) * 7 % 11
    for is_one_pass in (False, True):
        body = Sums(packs=True)
        found = isolated_hidden_states(body, ids, positions, Isolation.PACKED, is_one_pass=is_one_pass)
        assert (body.shapes == [tuple(ids.shape)]) == is_one_pass
        torch.testing.assert_close(found[positions >= 0], alone(body, ids, blocks), rtol=0, atol=0)
    for whole in (positions[:1], positions_of([([1500], length - 1500)]), positions[1:2, :LONGEST_MASKED]):
        body = Sums(packs=True)
        isolated_hidden_states(body, torch.zeros_like(whole), whole, Isolation.PACKED)
        assert body.shapes == [tuple(whole.shape)]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_attention_over_long_packed_rows_takes_memory_in_proportion_to_them(family: str) -> None:
    """A mask of 4,096 × 4,096 has 16 MB, and attention makes 64 MB of it. Hidden states of width 16 have 0.25."""
    heads = {"num_attention_heads": 2, "num_hidden_layers": 1, "hidden_size": 16, "vocab_size": 11}
    more = {"intermediate_size": 32, "num_key_value_heads": 1} if family == "llama" else {"n_inner": 32}
    config = AutoConfig.for_model(family, max_position_embeddings=4096, **heads, **more)
    body = AutoModel.from_config(config).eval()
    positions = positions_of([([1024] * 4, 0)])
    ids = torch.arange(4096)[None] % 11
    run = functools.partial(isolated_hidden_states, body, ids, positions, Isolation.PACKED)
    found = run()
    expected = torch.cat([body(part, use_cache=False).last_hidden_state for part in ids.split(1024, 1)], 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert peak_extra_bytes(run) < 16e6
    assert peak_extra_bytes(functools.partial(run, is_one_pass=True)) > 64e6  # the measure sees a mask


def test_the_sums_of_these_tests_are_kept_apart_by_positions() -> None:
    found = Sums(packs=True).hidden(torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[0, 1, 0, 1]]))
    np.testing.assert_array_equal(found[0, :, 0].detach(), [1, 3, 3, 7])
