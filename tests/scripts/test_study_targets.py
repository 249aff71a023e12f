"""The study's schemes mean what their names say, and a tiny study runs from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.study_targets import MANTISSA_BITS, Scheme, StudyConfig, _round, all_schemes, run
from storage.bit_rounding import round_float16

VOCAB = 300
SCHEMES = {scheme.name: scheme for scheme in all_schemes()}
UNBIASED = [name for name in SCHEMES if name.startswith(("random_sampling", "tail"))]


def draw(num_rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student logits, teacher log-probabilities, uniforms and labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_rows, VOCAB, generator=generator)
    logp = torch.log_softmax(2 * torch.randn(num_rows, VOCAB, generator=generator), dim=1)
    uniforms = torch.rand(num_rows, 64, generator=generator, dtype=torch.float64)
    return logits, logp, uniforms, torch.zeros(num_rows, dtype=torch.int64)


@pytest.mark.parametrize("name", UNBIASED)
def test_gradients_of_sampled_schemes_average_to_full_distillation(name: str) -> None:
    num_draws = 4000
    logits, logp, _, _ = draw(1)
    _, _, uniforms, labels = draw(num_draws, seed=1)
    found = SCHEMES[name].gradient(logits.repeat(num_draws, 1), logp.repeat(num_draws, 1), uniforms, labels)
    expected = SCHEMES["full"].gradient(logits, logp, uniforms, labels)[0]
    standard_error = found.std(dim=0) / num_draws**0.5
    assert ((found.mean(dim=0) - expected).abs() <= 5 * standard_error + 2e-3).all()


@pytest.mark.parametrize("name", ["full", "topk_bucket_12", "topk_bucket_50"])
def test_a_student_equal_to_the_teacher_has_no_gradient(name: str) -> None:
    _, logp, uniforms, labels = draw(3)
    assert SCHEMES[name].gradient(logp, logp, uniforms, labels).abs().max() < 4e-3  # what rounding leaves


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda scheme: scheme.name)
def test_gradients_add_up_to_zero(scheme: Scheme) -> None:
    logits, logp, uniforms, labels = draw(5)
    assert scheme.gradient(logits, logp, uniforms, labels).sum(dim=1).abs().max() < 1e-4


def test_rounding_on_the_device_is_the_formats() -> None:
    values = -torch.rand(2000, generator=torch.Generator().manual_seed(0)) * 20
    half = values.half().float()  # where both round once
    np.testing.assert_array_equal(_round(half).numpy(), round_float16(half.numpy(), MANTISSA_BITS).astype(np.float32))


def test_a_tiny_study_writes_its_results(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, VOCAB, 60 * 129, dtype=np.uint16)
    np.save(tmp_path / "tokens.npy", tokens)
    (tmp_path / "text.json").write_text(json.dumps({"vocab_size": VOCAB}))
    schemes = ("ce", "full", "tail_16_top_0")
    run(
        StudyConfig(
            out=tmp_path, device="cpu", schemes=schemes, seeds=(0,), steps=2, batch_blocks=2,
            layers=1, width=64, teacher_layers=1, teacher_width=64, teacher_steps=2,
        )
    )  # fmt: skip
    found = json.loads((tmp_path / "main.json").read_text())
    assert set(found["seeds"]["0"]) == set(schemes)
    assert found["bytes_per_token"]["tail_16_top_0"] > 0
