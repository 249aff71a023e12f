"""The replaced layers are the same functions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from pipeline.teacher.fast_layers import use_fast_layers


def truth(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast"])
def test_the_function_is_the_tanh_form_of_gelu(name: str) -> None:
    holder = nn.ModuleDict({"act": ACT2FN[name]})
    use_fast_layers(holder)
    assert type(holder["act"]) is not type(ACT2FN[name])
    x = torch.linspace(-12, 12, 4001)
    torch.testing.assert_close(holder["act"](x).double(), truth(x.double()), rtol=0, atol=1e-6)


def test_other_activations_stay() -> None:
    holder = nn.ModuleDict({name: ACT2FN[name] for name in ("relu", "gelu", "quick_gelu", "silu")})
    before = dict(holder.items())
    use_fast_layers(holder)
    assert dict(holder.items()) == before


def gpt2(activation: str = "gelu_new") -> nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=99, n_positions=16, bos_token_id=None,
                        eos_token_id=None, activation_function=activation)  # fmt: skip
    model: nn.Module = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)  # biases of zero would hide that they are lost
    return model


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_a_model_says_the_same(activation: str) -> None:
    model = gpt2(activation)
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        expected = model(ids).logits
        use_fast_layers(model)
        torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_in_bfloat16_a_model_is_no_further_from_the_truth_than_before(activation: str) -> None:
    model, wide = gpt2(activation).bfloat16(), gpt2(activation).bfloat16().double()
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        expected, before = wide(ids).logits, model(ids).logits.double()
        use_fast_layers(model)
        found = model(ids).logits.double()
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert not [module for module in model.modules() if isinstance(module, Conv1D)]
    assert (found - expected).square().mean() <= 1.2 * (before - expected).square().mean()
