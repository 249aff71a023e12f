"""Fewer neurons and heads: equal to the whole with the others silenced, in the families that can state it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.cutting.choice import choose_width, even_layers, share_of, strongest
from pipeline.cutting.config import CutConfig
from pipeline.cutting.depth import keep_layers
from pipeline.cutting.width import Width, family_of, whole_width
from pipeline.errors import UncuttableTeacherError
from tests.odd_models import MODELS, make_model

_NEURONS = (1, 4, 46)


def make(name: str) -> Any:
    if name == "gpt2":
        return make_model("gpt2", n_inner=48)
    torch.manual_seed(0)
    settings = MODELS["llama"][0] | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
    biases = {"attention_bias": True, "mlp_bias": True} if name == "llama" else {}
    config = AutoConfig.for_model(name, **(settings | biases))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    return model


@torch.no_grad()
def silence(model: Any, width: Width) -> None:
    """Zero what neurons and heads that are not kept say: their columns of the matrices after them."""
    for layer in model.transformer.h if hasattr(model, "transformer") else model.model.layers:
        down = layer.mlp.c_proj.weight.T if hasattr(layer.mlp, "c_proj") else layer.mlp.down_proj.weight
        down[:, [number for number in range(48) if number not in width.neurons]] = 0
        if hasattr(layer, "self_attn"):
            for head in {*range(4)} - {*width.heads}:
                layer.self_attn.o_proj.weight[:, 6 * head : 6 * head + 6] = 0


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("heads", [((2, 3), (1,)), ((0, 3), (0, 1)), ((0, 1, 2, 3), (0, 1))])
def test_what_is_kept_is_the_whole_with_the_rest_silenced(name: str, heads: Any, tmp_path: Path) -> None:
    model = make(name)
    whole = whole_width(model)
    width = Width(neurons=_NEURONS, heads=heads[0], key_heads=heads[1])
    if name == "gpt2":
        width = Width(neurons=_NEURONS, heads=whole.heads, key_heads=whole.key_heads)
    keep_layers(model, [0, 1], [width, width]).save_pretrained(tmp_path)
    smaller = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    silence(model, width)
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    with torch.no_grad():
        found, expected = smaller(input_ids=ids).logits, model(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert smaller.config.to_dict()["n_inner" if name == "gpt2" else "intermediate_size"] == 3


def test_all_of_each_layer_is_the_model_bit_for_bit() -> None:
    model = make("llama")
    same = keep_layers(model, [0, 1], [whole_width(model)] * 2)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in same.state_dict().items())


def test_what_cannot_be_narrowed_is_refused() -> None:
    with pytest.raises(UncuttableTeacherError, match="states no width of a head"):
        family_of(make("gpt2"), cuts_heads=True)
    with pytest.raises(UncuttableTeacherError, match="it is a bloom"):
        family_of(make_model("bloom"), cuts_heads=False)


def test_even_layers_keep_both_ends_and_one_is_the_first() -> None:
    assert even_layers(1, 12) == (0,)
    assert even_layers(2, 12) == (0, 11)
    assert even_layers(6, 12) == (0, 2, 4, 7, 9, 11)
    for count in range(2, 13):
        layers = even_layers(count, 12)
        assert len({*layers}) == count
        assert (layers[0], layers[-1]) == (0, 11)
        gaps = [after - before for before, after in pairwise(layers)]
        assert max(gaps) - min(gaps) <= 1


def test_shares_round_and_keep_at_least_one() -> None:
    assert [share_of(share, 4) for share in (0.01, 0.3, 0.5, 0.9, 1.0)] == [1, 1, 2, 4, 4]
    assert strongest([1.0, 3.0, 2.0, 3.0], 3) == (1, 2, 3)


def choose(share: float, heads: list[float], num_key_heads: int) -> Width:
    whole = Width(neurons=(0, 1), heads=tuple(range(len(heads))), key_heads=tuple(range(num_key_heads)))
    config = CutConfig(teacher="t", out=Path("o"), keep_heads=share, data="stdlib")
    return choose_width(config, whole, torch.tensor([0.0, 1.0]), torch.tensor(heads))


def test_groups_go_whole_where_the_share_leaves_one_out() -> None:
    assert choose(0.5, [1.0, 1.0, 0.0, 3.0], 2) == Width(neurons=(0, 1), heads=(2, 3), key_heads=(1,))
    assert choose(0.5, [1.0, 4.0, 2.0, 3.0], 1) == Width(neurons=(0, 1), heads=(1, 3), key_heads=(0,))
    assert choose(0.75, [9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 2).heads == (0, 2, 3, 5, 6, 7)
