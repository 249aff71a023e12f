"""The probe for packed documents: rounding is small, a leak is large, NaN is never mistaken for either."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.tensors.packing import packing_leak, relative_difference


def hidden_of(ids_NT: NDArray[np.int64], segment_lengths: list[NDArray[np.int64]]) -> Tensor:
    """Hidden states [N, T, 1]: sums of a document's ids so far."""
    rows = [
        np.concatenate([part.cumsum() for part in np.split(ids, np.cumsum(lengths)[:-1])])
        for ids, lengths in zip(ids_NT, segment_lengths, strict=True)
    ]
    return torch.from_numpy(np.stack(rows))[:, :, None].float()


def leaking_hidden_of(ids_NT: NDArray[np.int64], segment_lengths: list[NDArray[np.int64]]) -> Tensor:
    """The same of all of a block."""
    return hidden_of(ids_NT, [np.array([lengths.sum()]) for lengths in segment_lengths])


@pytest.mark.parametrize("vocab_size", [2, 257])
@pytest.mark.parametrize("context_length", [2, 7, 1024])
def test_a_leak_is_told_from_none(vocab_size: int, context_length: int) -> None:
    longest = []

    def leak_of(hidden: object) -> float:
        def measured(ids: NDArray[np.int64], lengths: list[NDArray[np.int64]]) -> Tensor:
            longest.append(ids.shape[1])
            assert ids.max() < vocab_size
            return hidden(ids, lengths)  # type: ignore[operator,no-any-return]

        return packing_leak(measured, vocab_size=vocab_size, context_length=context_length)

    assert leak_of(hidden_of) == 0
    assert leak_of(leaking_hidden_of) > 0.1
    assert max(longest) <= context_length


def test_the_difference_is_relative_to_the_largest_value_but_not_to_one_below_1() -> None:
    expected = torch.tensor([0.5, -8.0])
    assert relative_difference(torch.tensor([2.5, -8.0]), expected) == 0.25
    assert relative_difference(torch.tensor([0.25, 0.0]), torch.tensor([0.5, 0.0])) == 0.25
    assert relative_difference(expected.bfloat16(), expected.double()) == 0
    assert math.isnan(relative_difference(torch.tensor([math.nan, -8.0]), expected))
    assert math.isnan(relative_difference(expected, torch.tensor([math.nan, -8.0])))
