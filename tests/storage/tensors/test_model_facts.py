"""Facts of a loaded model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from storage.tensors.model_facts import body_of, context_length_of, num_parameters, rescaled_beyond


@pytest.mark.parametrize(("config", "expected"), [({"max_position_embeddings": 64}, 64), ({}, 1 << 30)])
def test_a_model_that_states_no_context_has_no_limit(config: dict[str, int], expected: int) -> None:
    assert context_length_of(SimpleNamespace(config=SimpleNamespace(**config))) == expected


@pytest.mark.parametrize("name", ["max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"])
def test_a_model_of_several_parts_reads_as_much_as_its_part_for_text(name: str) -> None:
    text = SimpleNamespace(**{name: 64})
    config = SimpleNamespace(get_text_config=lambda: text, max_position_embeddings=9)
    assert context_length_of(SimpleNamespace(config=config)) == 64


@pytest.mark.parametrize(
    ("rope", "beside", "expected"),
    [
        ({"rope_type": "longrope"}, {"original_max_position_embeddings": 16}, 16),
        ({"rope_type": "longrope", "original_max_position_embeddings": 8}, {}, 8),
        ({"rope_type": "dynamic"}, {}, 64),
        ({"rope_type": "llama3", "original_max_position_embeddings": 8}, {}, 0),
        (None, {}, 0),
    ],
)
def test_the_length_beyond_which_a_texts_own_length_matters(
    rope: dict[str, Any] | None, beside: dict[str, int], expected: int
) -> None:
    config = SimpleNamespace(max_position_embeddings=64, rope_parameters=rope, **beside)
    assert rescaled_beyond(SimpleNamespace(config=config)) == expected


def test_the_body_is_not_the_model_itself() -> None:
    class Part(SimpleNamespace):
        __hash__ = object.__hash__

    body, model = Part(), Part()
    model.base_model, model.get_decoder, model.model = model, lambda: model, body
    model.get_output_embeddings = lambda: None
    assert body_of(model) is body
    model.base_model = other = Part()
    assert body_of(model) is other


def test_tied_parameters_count_once() -> None:
    embedding, head = nn.Embedding(7, 3), nn.Linear(3, 7)
    head.weight = embedding.weight
    assert num_parameters(nn.ModuleList([embedding, head])) == 7 * 3 + 7
