"""Facts of a loaded model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from storage.tensors.model_facts import context_length_of, num_parameters


@pytest.mark.parametrize(("config", "expected"), [({"max_position_embeddings": 64}, 64), ({}, 1 << 30)])
def test_a_model_that_states_no_context_has_no_limit(config: dict[str, int], expected: int) -> None:
    assert context_length_of(SimpleNamespace(config=SimpleNamespace(**config))) == expected


def test_tied_parameters_count_once() -> None:
    embedding, head = nn.Embedding(7, 3), nn.Linear(3, 7)
    head.weight = embedding.weight
    assert num_parameters(nn.ModuleList([embedding, head])) == 7 * 3 + 7
