from __future__ import annotations

import numpy as np
import pytest

from storage.rows.segments import position_ids, valid_targets

LENGTHS = [
    [1],
    [5],
    [1, 1, 1],
    [1, 4],
    [4, 1],
    [2, 3, 1, 7],
    *(np.random.default_rng(seed).integers(1, 9, size=1 + seed).tolist() for seed in range(20)),
]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_positions_and_targets_agree_with_a_loop_over_tokens(lengths: list[int]) -> None:
    documents, positions = [], []
    for document, length in enumerate(lengths):
        for position in range(length):
            documents.append(document)
            positions.append(position)
    same_document = [documents[t] == documents[t + 1] for t in range(len(documents) - 1)]
    array = np.array(lengths)
    assert position_ids(array).tolist() == positions
    assert valid_targets(array).tolist() == same_document


def test_lengths_may_be_any_integer_type() -> None:
    lengths = np.array([2, 3], dtype=np.uint32)
    assert position_ids(lengths).tolist() == [0, 1, 0, 1, 2]
    assert valid_targets(lengths).tolist() == [True, False, True, True]
