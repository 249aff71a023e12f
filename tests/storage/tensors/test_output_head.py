"""The head of a dozen families against their own logits: caps, scales, biases, and what no formula says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, ModernBertDecoderConfig, ModernBertDecoderForCausalLM

from storage.tensors.output_head import HeadCode, OutputHead, output_head_of, same_logits
from tests.heads import FAMILIES, make_model


def hidden_states(width: int, *, size: float = 1.0) -> Tensor:
    return size * torch.randn(9, width, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_scale_cap_and_bias_of_a_family(model_type: str) -> None:
    """As a fresh model has them, whose small logits are far below any cap and whose biases are zero."""
    model = make_model(model_type)
    head = output_head_of(model)
    assert head is not None
    assert (head.scale, head.cap_nats, head.bias_V is not None) == FAMILIES[model_type][1]
    assert head.weight_VD is model.get_output_embeddings().weight


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_logits_are_the_models_own_far_beyond_the_cap(model_type: str) -> None:
    model = make_model(model_type, head_size=1.0).double()
    with torch.no_grad():
        head, code = output_head_of(model), HeadCode(model)
        for size in (1e-2, 1.0, 20.0):
            hidden = hidden_states(head.weight_VD.shape[1], size=size)
            torch.testing.assert_close(head.logits(hidden), code.logits(hidden), rtol=1e-12, atol=1e-12)
        ids = torch.arange(7)[None]
        own = model(input_ids=ids).logits[0]
        torch.testing.assert_close(head.logits(model.base_model(input_ids=ids).last_hidden_state[0]), own)


class Wrapped(GPT2LMHeadModel):
    """A GPT-2 whose logits pass through one more function."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = self.change(output.logits)
        return output


class Masked(Wrapped):
    def change(self, logits: Tensor) -> Tensor:
        return logits.index_fill(-1, torch.arange(20, 24), -torch.inf)


class Short(Wrapped):
    def change(self, logits: Tensor) -> Tensor:
        return logits[..., :20]


class Offset(Wrapped):
    def change(self, logits: Tensor) -> Tensor:
        return logits + 0.01


class CapOf30(Wrapped):
    def change(self, logits: Tensor) -> Tensor:
        return 30.0 * torch.tanh(logits / 30.0)


@pytest.mark.parametrize(("stated", "found"), [(30.0, 30.0), (30.1, None), (None, None)])
def test_bfloat16_hides_no_cap(stated: float | None, found: float | None) -> None:
    """The fresh model's logits are far below the cap, and its dtype rounds more than a wrong cap changes them."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=24, n_positions=16, n_embd=16, n_layer=1, n_head=2, final_logit_softcapping=stated)
    head = output_head_of(CapOf30(config).bfloat16().eval())
    assert (head and head.cap_nats) == found


@pytest.mark.parametrize("model_class", [Masked, Short, Offset])
def test_what_no_formula_says_is_none_and_its_code_can_be_run(model_class: type[Wrapped]) -> None:
    torch.manual_seed(0)
    model = model_class(GPT2Config(vocab_size=24, n_positions=16, n_embd=16, n_layer=1, n_head=2)).eval()
    assert output_head_of(model) is None
    with torch.no_grad():
        ids = torch.arange(7)[None]
        hidden = model.transformer(input_ids=ids).last_hidden_state[0]
        found = HeadCode(model).logits(hidden)
        assert torch.equal(found, model(input_ids=ids).logits[0])
    assert "forward" not in model.transformer.__dict__


def test_a_head_of_two_layers_whose_matrix_is_called_decoder() -> None:
    torch.manual_seed(0)
    config = ModernBertDecoderConfig(
        vocab_size=24, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = ModernBertDecoderForCausalLM(config).eval()
    assert output_head_of(model) is None
    with torch.no_grad():
        ids = torch.arange(7)[None]
        found = HeadCode(model).logits(model.model(input_ids=ids).last_hidden_state[0])
        assert torch.equal(found, model(input_ids=ids).logits[0])


def test_rows_of_minus_infinity_in_the_bias_are_explained() -> None:
    model = make_model("phi")
    model.lm_head.bias.data[90:] = -torch.inf
    assert output_head_of(model) is not None


def test_the_gradient_of_products_is_that_of_autograd() -> None:
    products = hidden_states(11, size=3.0).requires_grad_()
    bias = torch.linspace(-1, 1, 11, dtype=torch.float64)
    upstream = torch.linspace(-1, 2, 99, dtype=torch.float64).reshape(9, 11)
    logits = 2.5 * torch.tanh(1.5 * (products + bias) / 2.5)
    (expected,) = torch.autograd.grad((logits * upstream).sum(), products)
    head = OutputHead(weight_VD=torch.eye(11, dtype=torch.float64), bias_V=bias, scale=1.5, cap_nats=2.5)
    found = head.finish_(products.detach().clone())
    torch.testing.assert_close(found, logits.detach())
    torch.testing.assert_close(head.gradient_of_products_(upstream.clone(), found), expected)


def test_same_logits() -> None:
    logits = torch.tensor([[1.0, -100.0, -torch.inf], [torch.nan, 0.0, 0.0]])
    assert same_logits(logits, logits)
    assert same_logits(logits + torch.tensor([[4.0], [0.0]]), logits)
    assert not same_logits(logits + torch.tensor([[6.0], [0.0]]), logits)
    assert not same_logits(logits[:, :2], logits)
    assert not same_logits(logits.nan_to_num(), logits)


def test_finding_a_head_draws_no_random_numbers_and_leaves_the_mode() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=17, n_positions=8, n_embd=8, n_layer=1, n_head=1)).train()
    state = torch.get_rng_state()
    assert output_head_of(model) is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
