"""How a model isolates documents is found by trial, on the lengths of the run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from storage.tensors.isolation import find_isolation, is_causal, is_rounding, unless_refused
from storage.tensors.packing import LONGEST_MASKED, Isolation
from tests.storage.tensors.bodies import Acausal, Leaking, OfBatch, OfLongest, Sums

CPU = torch.device("cpu")


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4, 7, 32, 100])
@pytest.mark.parametrize(
    ("body", "expected"),
    [(Sums(packs=True), Isolation.PACKED), (Sums(packs=False), Isolation.ROWS), (Leaking(), Isolation.ROWS)],
)
def test_the_way_is_found_for_blocks_of_any_length(body: Sums, expected: Isolation, num_tokens: int) -> None:
    found = find_isolation(body, vocab_size=11, num_tokens=num_tokens, device=CPU)
    # Nothing can leak into a block's only document.
    assert found is (Isolation.PACKED if isinstance(body, Leaking) and num_tokens < 4 else expected)


@pytest.mark.parametrize("packs", [True, False])
def test_a_function_of_the_longest_text_matters_where_the_run_passes_its_threshold(packs: bool) -> None:
    body = OfLongest(packs=packs)
    short, long = (find_isolation(body, vocab_size=11, num_tokens=n, device=CPU) for n in (10, 11))
    assert (short, long) == (Isolation.PACKED if packs else Isolation.ROWS, Isolation.EQUAL_ROWS)
    assert find_isolation(body, vocab_size=11, num_tokens=2000, device=CPU) is Isolation.EQUAL_ROWS


class LeakingBelow(Leaking):
    """Packs, except in passes of `num_tokens` or fewer."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self._num_tokens = num_tokens

    def hidden(self, values_NT: Tensor, positions_NT: Tensor | None) -> Tensor:
        if values_NT.shape[1] <= self._num_tokens:
            return super().hidden(values_NT, positions_NT)
        return Sums.hidden(self, values_NT, positions_NT)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (Sums(packs=True), Isolation.PACKED),
        (Leaking(), Isolation.ROWS),
        (OfLongest(packs=True), Isolation.EQUAL_ROWS),
        (LeakingBelow(LONGEST_MASKED), Isolation.ROWS),
    ],
)
def test_blocks_too_long_to_run_packed_are_tried_as_they_run_and_shorter_ones_packed(
    body: Sums, expected: Isolation
) -> None:
    found = find_isolation(body, vocab_size=11, num_tokens=LONGEST_MASKED + 100, device=CPU)
    assert found is expected


@pytest.mark.parametrize("body", [Acausal(packs=True), Acausal(packs=False), OfBatch(packs=False)])
def test_a_model_that_sees_later_tokens_or_other_rows_has_no_way(body: Sums) -> None:
    assert find_isolation(body, vocab_size=11, num_tokens=32, device=CPU) is None


def test_nothing_is_said_of_nan() -> None:
    body = Sums(packs=False)
    body.weight.data.fill_(torch.nan)
    assert find_isolation(body, vocab_size=11, num_tokens=32, device=CPU) is Isolation.PACKED
    assert is_causal(body, torch.arange(5), 11)


def test_impossible_ids_do_not_hide_a_difference_of_the_others() -> None:
    body, expected = Sums(packs=False), torch.tensor([[1.0, 2.0, -torch.inf]])
    assert is_rounding(body, expected.clone(), expected, expected.clone)
    assert not is_rounding(body, torch.tensor([[1.0, 2.1, -torch.inf]]), expected, expected.clone)


@pytest.mark.parametrize("num_tokens", [1, 2, 7])
def test_another_last_token_tells_a_causal_model(num_tokens: int) -> None:
    ids = torch.arange(num_tokens)
    assert is_causal(Sums(packs=False), ids, 11)
    assert is_causal(Acausal(packs=False), ids, 11) == (num_tokens == 1)


class Layers(nn.Module):
    """Four random layers, whose results are compared in a dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(4))
        for layer in self.layers:
            layer.weight.data = torch.randn(64, 64, generator=generator) / 8
        self.inputs = torch.randn(32, 64, generator=generator)
        self.to(dtype)

    def forward(self) -> Tensor:
        hidden = self.inputs.to(self.layers[0].weight.dtype)
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        return hidden

    def in_another_order(self) -> Tensor:
        hidden = self.inputs.to(self.layers[0].weight.dtype)
        for layer in self.layers:
            parts = zip(hidden.split(32, 1), layer.weight.split(32, 1), strict=True)
            halves = [part @ weight.T for part, weight in parts]
            hidden = hidden + torch.tanh(halves[0] + halves[1])
        return hidden


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@torch.no_grad()
def test_another_order_of_the_same_sums_is_rounding_and_six_times_its_difference_is_not(dtype: torch.dtype) -> None:
    body = Layers(dtype)
    expected, found = body(), body.in_another_order()
    assert not torch.equal(expected, found)
    assert is_rounding(body, found, expected, body)
    shifted = found.clone()
    sizes = [(found - expected).float().square().mean().sqrt() * 6, expected.float().square().mean().sqrt() * 3e-4]
    shifted[17] += max(sizes).to(dtype)
    assert not is_rounding(body, shifted, expected, body)
    assert not is_rounding(body, torch.full_like(found, torch.nan), expected, body)
    torch.testing.assert_close(body(), expected, rtol=0, atol=0)  # no hook is left


def test_a_refusal_is_none_and_want_of_memory_is_raised() -> None:
    def raising(error: Exception) -> Any:
        def run() -> Tensor:
            raise error

        return run

    assert unless_refused(raising(TypeError("position_ids"))) is None
    assert unless_refused(raising(RuntimeError("shapes"))) is None
    with pytest.raises(torch.OutOfMemoryError):
        unless_refused(raising(torch.OutOfMemoryError("no room")))
    with pytest.raises(AssertionError):
        unless_refused(raising(AssertionError("a bug")))
