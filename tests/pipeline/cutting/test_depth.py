"""Fewer layers: equal to the whole with the others passed by, over many architectures; or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from pipeline.cutting.depth import keep_layers
from pipeline.errors import UncuttableTeacherError
from tests.odd_models import make_model

_FOUR = {"num_hidden_layers": 4, "n_layer": 4, "n_layers": 4}


def logits_of(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def naive(model: GPT2LMHeadModel, layers: list[int], ids: list[int]) -> torch.Tensor:
    """GPT-2's formula with some of its blocks, one after another."""
    body = model.transformer
    with torch.no_grad():
        hidden = body.wte(torch.tensor([ids])) + body.wpe(torch.arange(len(ids)))[None]
        for layer in layers:
            hidden = body.h[layer](hidden)
        return model.lm_head(body.ln_f(hidden))[0]


def four_layers(name: str) -> Any:
    return make_model(name, **_FOUR)


def test_some_layers_of_gpt2_are_its_blocks_one_after_another() -> None:
    model = four_layers("gpt2")
    for layers in ([0, 3], [1], [0, 1, 3]):
        smaller = keep_layers(model, layers)
        assert smaller.config.n_layer == len(layers)
        torch.testing.assert_close(logits_of(smaller, [3, 1, 4, 1, 5]), naive(model, layers, [3, 1, 4, 1, 5]))


def test_all_layers_are_the_model_bit_for_bit_and_copies() -> None:
    model = four_layers("gpt2")
    same = keep_layers(model, range(4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in same.state_dict().items())
    assert torch.equal(logits_of(same, [3, 1, 4]), logits_of(model, [3, 1, 4]))
    assert same.lm_head.weight is same.transformer.wte.weight
    assert all(weight.requires_grad for weight in same.parameters())
    with torch.no_grad():
        same.lm_head.weight.zero_()
    assert torch.equal(model.lm_head.weight, before["lm_head.weight"])
