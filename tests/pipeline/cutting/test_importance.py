"""Importance against a plain float64 truth, layer by layer, neuron by neuron and head by head."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.cutting.importance import Batch, layer_importance, measure
from pipeline.cutting.width import family_of
from storage.rows.segments import position_ids
from storage.tensors.packing import Isolation
from tests.odd_models import make_model

LENGTHS = ([7, 5], [1, 11])
IDS = torch.from_numpy(np.random.default_rng(0).integers(0, 257, (2, 12)))
DOCUMENTS = [part for row, lengths in zip(IDS, LENGTHS, strict=True) for part in torch.split(row, lengths)]


def batches() -> list[Batch]:
    """Two passes of one block, each with two documents."""
    positions = [torch.from_numpy(position_ids(np.array(lengths))) for lengths in LENGTHS]
    return [(ids[None], places[None]) for ids, places in zip(IDS, positions, strict=True)]


def cosine(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x * y).sum(-1) / (x.pow(2).sum(-1).sqrt() * y.pow(2).sum(-1).sqrt())


@torch.no_grad()
def truth_of_gpt2(model: Any) -> tuple[list[float], torch.Tensor]:
    """By GPT-2's formula in float64, each document alone: 1 − cos of each block, mean |gelu(c_fc(ln_2(…)))|."""
    body = model.transformer
    influence, activations = [[] for _ in body.h], [[] for _ in body.h]
    for ids in DOCUMENTS:
        hidden = (body.wte(ids) + body.wpe(torch.arange(len(ids))))[None]
        for number, block in enumerate(body.h):
            attended = hidden + block.attn(block.ln_1(hidden))[0]
            active = block.mlp.act(block.mlp.c_fc(block.ln_2(attended)))
            after = attended + block.mlp.c_proj(active)
            influence[number].append(1 - cosine(hidden, after)[0])
            activations[number].append(active[0].abs())
            hidden = after
    return [float(torch.cat(parts).mean()) for parts in influence], torch.stack(
        [torch.cat(parts).mean(0) for parts in activations]
    )


def test_layers_and_neurons_of_gpt2() -> None:
    model = make_model("gpt2", n_layer=3).double()
    layers, neurons_LF = truth_of_gpt2(model)
    found = measure(model, batches(), Isolation.PACKED, family_of(model, cuts_heads=False))
    np.testing.assert_allclose(found.layers, layers, rtol=1e-12)
    torch.testing.assert_close(found.neurons_LF, neurons_LF, rtol=1e-12, atol=0)
    assert found.heads_LH is None


@pytest.mark.parametrize(("name", "isolation"), [("bloom", Isolation.ROWS), ("llama", Isolation.EQUAL_ROWS)])
def test_documents_and_padding_never_reach_a_layer(name: str, isolation: Isolation) -> None:
    model = make_model(name).double()
    with torch.no_grad():
        states = [model(input_ids=ids[None], output_hidden_states=True).hidden_states for ids in DOCUMENTS]
    first = torch.cat([1 - cosine(hidden[0][0], hidden[1][0]) for hidden in states]).mean()
    assert layer_importance(model, batches(), isolation)[0] == pytest.approx(float(first), rel=1e-9)


def test_heads_of_llama() -> None:
    model = make_model("llama", num_attention_heads=4, num_key_value_heads=2, head_dim=6).double()
    outputs: list[torch.Tensor] = []
    attention = model.model.layers[1].self_attn
    hook = attention.o_proj.register_forward_pre_hook(lambda module, args: outputs.append(args[0][0]))
    with torch.no_grad():
        for ids in DOCUMENTS:
            model(input_ids=ids[None], use_cache=False)
    hook.remove()
    norms = torch.stack([torch.cat(outputs)[:, 6 * h : 6 * h + 6].pow(2).sum(1).sqrt().mean() for h in range(4)])
    found = measure(model, batches(), Isolation.PACKED, family_of(model, cuts_heads=True))
    assert found.heads_LH is not None
    torch.testing.assert_close(found.heads_LH[1], norms, rtol=1e-9, atol=0)


def test_a_layer_that_only_rescales_does_nothing() -> None:
    model = make_model("gpt2").double()
    with torch.no_grad():
        for weight in model.transformer.h[1].parameters():
            weight.zero_()
    assert layer_importance(model, batches())[1] == pytest.approx(0, abs=1e-12)
