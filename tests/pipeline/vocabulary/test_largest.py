"""Looking at the largest blocks finds what looking at all of a row finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.vocabulary.largest import block_maxima, largest
from storage.tensors.vocabulary_blocks import BLOCK_IDS

SIZES = [1, 63, 64, 65, 128, 200, 1000, 1024]


def rows_of(vocab_size: int, num_values: int = 1 << 20) -> np.ndarray:
    """[5, V] float32, with few distinct values when num_values is small."""
    rng = np.random.default_rng(0)
    return (rng.integers(0, num_values, (5, vocab_size)) / num_values).astype(np.float32)


@pytest.mark.parametrize("vocab_size", SIZES)
def test_maxima_of_blocks(vocab_size: int) -> None:
    rows = rows_of(vocab_size)
    pieces = np.split(rows, range(BLOCK_IDS, vocab_size, BLOCK_IDS), axis=1)
    assert block_maxima(torch.from_numpy(rows)).numpy().tolist() == np.stack([p.max(1) for p in pieces], 1).tolist()


@pytest.mark.parametrize("vocab_size", SIZES)
@pytest.mark.parametrize("num", [1, 2, 5, 33])
@pytest.mark.parametrize("num_values", [3, 1 << 20])
def test_the_largest_values_and_ids_that_hold_them(vocab_size: int, num: int, num_values: int) -> None:
    rows = rows_of(vocab_size, num_values=num_values)
    num = min(num, vocab_size)
    values, ids = (tensor.numpy() for tensor in largest(torch.from_numpy(rows), num))
    assert values.tolist() == (-np.sort(-rows, axis=1))[:, :num].tolist()
    assert np.take_along_axis(rows, ids, axis=1).tolist() == values.tolist()
    assert all(len(set(row)) == num for row in ids.tolist())
