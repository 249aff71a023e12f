"""Teachers whose heads cap, scale or shift their logits: cached numbers against the model itself in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.teacher.loading import load_teacher
from pipeline.teacher.model import Teacher
from storage import Cache
from tests.heads import FAMILIES, make_model

Precompute = Callable[..., tuple[Any, Cache]]


@pytest.fixture
def precompute(helpers: ModuleType, text_file: Path, tmp_path: Path) -> Precompute:
    """Makes a teacher of a family, whose logits reach the cap, and a cache of soft targets of it."""

    def make(model_type: str, **changes: object) -> tuple[Any, Cache]:
        model = make_model(model_type, 257, head_size=2.0)
        model.save_pretrained(tmp_path / "teacher")
        helpers.make_tokenizer(tmp_path / "teacher")
        soft_targets = helpers.SoftTargetsConfig(
            top_k=4, tail_weight=0.05, temperatures=(1.0, 2.0), scalar_mantissa_bits=10
        )
        settings = {"max_tokens": 1500, "kinds": ("soft_targets",), "soft_targets": soft_targets} | changes
        config = helpers.tiny_config(tmp_path / "teacher", text_file, tmp_path / "cache", **settings)
        return model, helpers.precomputed(config)

    return make


@torch.inference_mode()
def assert_cached(cache: Cache, logits_of: Callable[[Tensor], Tensor], tolerance_nats: float) -> None:
    """logits_of: float64 logits [T, V] of ids [1, T]."""
    num_targets = 0
    for row in next(iter(cache.record_batches("soft_targets", "train"))).to_pylist()[:6]:
        start = 0
        for length in row["segment_lengths"]:
            ids = torch.tensor([row["input_ids"][start : start + length]])
            logs = torch.log_softmax(logits_of(ids)[:-1], dim=1)
            span = slice(start, start + length - 1)
            start += length
            num_targets += length - 1
            expected = {
                "label_logprob": logs.gather(1, ids[0, 1:, None])[:, 0],
                "entropy": -torch.xlogy(logs.exp(), logs.exp()).sum(1),
            }
            for name, values in expected.items():
                np.testing.assert_allclose(row[name][span], values, rtol=2**-11, atol=tolerance_nats, err_msg=name)
    assert num_targets > 100


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name not in ("codegen", "cohere2")])
def test_soft_targets_of_a_family(precompute: Precompute, model_type: str) -> None:
    model, cache = precompute(model_type)
    model.double()
    assert_cached(cache, lambda ids: model(input_ids=ids, use_cache=False).logits[0], 1e-3)


@pytest.fixture
def load(helpers: ModuleType, tmp_path: Path) -> Callable[..., Teacher]:
    """Saves a model and loads it as a teacher in bfloat16."""

    def load(model: Any) -> Teacher:
        model.save_pretrained(tmp_path)
        helpers.make_tokenizer(tmp_path)
        unused = tmp_path / "unused"
        return load_teacher(helpers.tiny_config(tmp_path, unused, unused, dtype="bfloat16"))

    return load


@pytest.mark.parametrize("model_type", ["gemma2", "vaultgemma", "granite", "phi", "cohere"])
def test_a_half_precision_teacher_has_an_exact_head(load: Callable[..., Teacher], model_type: str) -> None:
    """The body's hidden states are bfloat16. The head's sums, scale and cap are float32, not rounded between steps."""
    teacher = load(make_model(model_type, 257, head_size=2.0))
    _, (scale, cap, _) = FAMILIES[model_type]
    head = teacher.model.lm_head
    with torch.inference_mode():
        hidden = teacher.hidden(np.arange(32)[None], [np.array([32])])[0]
        truth = hidden.double() @ head.weight.double().T
        truth = scale * (truth if head.bias is None else truth + head.bias.double())
        truth = truth if cap is None else cap * torch.tanh(truth / cap)
        found = teacher.logits(hidden)
    assert (hidden.dtype, found.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=1e-5 * float(truth.abs().max()))


def test_loading_decides_without_the_weights_of_the_day(load: Callable[..., Teacher]) -> None:
    """A fresh gemma2's logits of at most 0.1 show nothing of a cap of 30."""
    teacher = load(make_model("gemma2", 257, head_size=1e-3))
    with torch.inference_mode():
        assert float(teacher.logits(torch.full((1, 32), 1e6, dtype=torch.bfloat16)).abs().max()) == pytest.approx(30.0)
