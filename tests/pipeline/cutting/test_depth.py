"""Fewer layers: equal to the whole with the others passed by, over many architectures; or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2LMHeadModel

from pipeline.cutting.depth import keep_layers
from pipeline.cutting.rebuilding import layers_of
from pipeline.errors import UncuttableTeacherError
from tests.odd_models import MODELS, make_model


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
    known = AutoConfig.for_model(name, **MODELS[name][0])
    (counted,) = {known.attribute_map.get("num_hidden_layers", "num_hidden_layers")}
    return make_model(name, **{counted: 4})


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


FAMILIES = (
    "gpt2", "llama", "qwen2", "mixtral", "bloom", "opt", "mpt", "falcon", "gpt_oss", "openai-gpt", "mamba", "rwkv",
    "phi3",
)  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_of_many_families_load_again_as_the_others_passed_by(name: str, tmp_path: Path) -> None:
    model = four_layers(name)
    keep_layers(model, [0, 3]).save_pretrained(tmp_path)
    found = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    _, layers = layers_of(model)
    for number in (1, 2):
        plain = layers[number].forward

        def passed_by(*args: Any, plain: Any = plain, **named: Any) -> Any:
            output = plain(*args, **named)
            hidden = args[0] if args else named["hidden_states"]
            return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

        layers[number].forward = passed_by
    torch.testing.assert_close(logits_of(found, [3, 1, 4, 1, 5, 9]), logits_of(model, [3, 1, 4, 1, 5, 9]))


def test_what_a_config_states_of_each_layer_goes_with_it() -> None:
    kinds = ["sliding_attention", "full_attention"] * 2
    model = make_model("gpt_oss", num_hidden_layers=4, layer_types=kinds, sliding_window=4096)
    smaller = keep_layers(model, [1, 2])
    assert smaller.config.layer_types == kinds[1:3]
    assert [layer.self_attn.sliding_window for layer in smaller.model.layers] == [None, 4096]
    neo = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "gpt_neo", vocab_size=257, hidden_size=32, num_layers=4, num_heads=2, max_position_embeddings=64,
            window_size=4, attention_types=[[["global", "local"], 2]],
        )
    )  # fmt: skip
    assert keep_layers(neo, [1, 2, 3]).config.attention_layers == ["local", "global", "local"]
    moe = make_model("mixtral", num_hidden_layers=3)
    assert moe.config.model_type == keep_layers(moe, [2]).config.model_type


def test_a_list_that_is_as_long_by_chance_stays() -> None:
    model = make_model("gpt2", n_layer=2, eos_token_id=[255, 256])
    assert keep_layers(model, [1]).config.eos_token_id == [255, 256]


def test_layers_that_know_their_number_are_refused_where_it_matters() -> None:
    model = make_model("gpt2", n_layer=3, scale_attn_by_inverse_layer_idx=True)
    keep_layers(model, [0, 1])
    with pytest.raises(UncuttableTeacherError, match="layer 2 has scaling"):
        keep_layers(model, [0, 2])
    with pytest.raises(UncuttableTeacherError, match="no model results"):
        keep_layers(make_model("jamba"), [0, 1, 2, 3][1:])


def test_an_architecture_without_one_list_of_layers_is_refused() -> None:
    model = four_layers("gpt2")
    model.transformer.h = torch.nn.Sequential(*model.transformer.h)
    with pytest.raises(UncuttableTeacherError, match="0 lists of 4 modules in its GPT2Model"):
        keep_layers(model, [0])
