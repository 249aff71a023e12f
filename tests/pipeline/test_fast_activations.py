"""The replaced activation is the same function."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config
from transformers.activations import ACT2FN

from pipeline.fast_activations import use_fast_activations


def truth(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast"])
def test_the_function_is_the_tanh_form_of_gelu(name: str) -> None:
    holder = nn.ModuleDict({"act": ACT2FN[name]})
    use_fast_activations(holder)
    assert type(holder["act"]) is not type(ACT2FN[name])
    x = torch.linspace(-12, 12, 4001)
    torch.testing.assert_close(holder["act"](x).double(), truth(x.double()), rtol=0, atol=1e-6)


def test_other_activations_stay() -> None:
    holder = nn.ModuleDict({name: ACT2FN[name] for name in ("relu", "gelu", "quick_gelu", "silu")})
    before = dict(holder.items())
    use_fast_activations(holder)
    assert dict(holder.items()) == before


def test_a_model_says_the_same() -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=99, n_positions=16, bos_token_id=None,
                        eos_token_id=None)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        expected = model(ids).logits
        use_fast_activations(model)
        torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-5)
