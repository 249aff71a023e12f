"""Students whose heads cap, scale or shift their logits: the gradient of each part against autograd of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from storage import Cache
from student import MixConfig, TrainConfig
from student.losses.parts.table import PARTS
from student.losses.scores import hidden_at
from student.training.objective import resolve_weights
from tests.heads import FAMILIES, make_model


class Plain:
    """The model's own logits [P, V] at the targets of a batch, by its own forward pass with gradient."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, batch: Any, is_target: Tensor) -> Tensor:
        logits = self._model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
        chosen: Tensor = logits[is_target]
        return chosen


def naive_loss(kind: str, batch: Any, logits_of: Plain, length_penalty: float) -> Tensor:
    if kind == "soft_targets":
        ids, weights = batch.targets.slice(0, len(batch.targets)).sampled_weights(1.0)
        logs = torch.log_softmax(logits_of(batch, batch.is_valid), dim=1)
        return -(weights * logs.gather(1, ids)).sum()
    texts = batch if kind == "samples" else batch.texts
    logs = torch.log_softmax(logits_of(texts, texts.is_target), dim=1).gather(1, texts.label_ids[:, None])[:, 0]
    if kind == "samples":
        return -logs.sum()
    total, start = logs.new_zeros(()), 0
    teacher = batch.teacher_scores
    scores = torch.full(teacher.shape, -torch.inf, dtype=logs.dtype)
    for prompt, slot, length in zip(batch.prompt_index, batch.slot, batch.lengths.tolist(), strict=True):
        scores[prompt, slot] = logs[start : start + length].sum() / length**length_penalty
        start += length
    for row, best in zip(scores, teacher.argmax(1), strict=True):
        total = total - torch.log_softmax(row, 0)[best]
    return total


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name not in ("llama", "codegen", "cohere2")])
def test_every_parameter_gets_the_gradient_of_the_models_own_logits(
    cache: Cache, train_config: Callable[..., TrainConfig], model_type: str
) -> None:
    model = make_model(model_type, 257, head_size=0.5).double()
    config = train_config(
        mix=MixConfig(soft_targets=1.0, labels=0.0, samples=1.0, beams=1.0), selection_temperature=None
    )
    weights = resolve_weights(config, cache)
    for kind, make_part in PARTS.items():
        part = make_part(model, cache, config, weights)
        batch: Any = part.batch(next(iter(cache.record_batches(kind, "train"))).slice(0, 3))
        parameters = list(model.parameters())
        found = torch.autograd.grad(part.loss(batch)[0], parameters, allow_unused=True)
        truth = naive_loss(kind, batch, Plain(model), float(cache.setting("config", "beams", "length_penalty")))
        expected = torch.autograd.grad(truth, parameters, allow_unused=True)
        for parameter, ours, theirs in zip(parameters, found, expected, strict=True):
            if theirs is None:
                assert ours is None or not ours.any()
                continue
            atol = 1e-6 * float(theirs.abs().max()) + 1e-12
            torch.testing.assert_close(ours, theirs, atol=atol, rtol=0, msg=f"{kind} {tuple(parameter.shape)}")


def test_hidden_states_of_no_rows_have_a_width(cache: Cache, train_config: Callable[..., TrainConfig]) -> None:
    model = make_model("phi", 257)
    config = train_config()
    part = PARTS["samples"](model, cache, config, resolve_weights(config, cache))
    empty: Any = part.batch(next(iter(cache.record_batches("samples", "train"))).slice(0, 0))
    assert hidden_at(model, empty, empty.is_target).shape == (0, 32)
    part.loss(empty)[0].backward()
    assert not model.lm_head.bias.grad.any()
