"""The study's schemes mean what their names say, and a tiny study runs from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.study import report
from scripts.study.measures import Measures, calibration_error
from scripts.study.networks import StudentConfig, TeacherConfig
from scripts.study.schemes import MANTISSA_BITS, Scheme, Teaching, _round, all_schemes
from scripts.study.stored_bytes import draw_counts_bytes
from scripts.study.targets import Size, run_study
from storage.rows.bit_rounding import round_float16

VOCAB = 300
SCHEMES = {scheme.name: scheme for scheme in all_schemes()}
UNBIASED = [name for name in SCHEMES if name.startswith(("random_sampling", "tail"))]


def draw(num_rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student's softmax, teacher's log-probabilities and uniforms."""
    generator = torch.Generator().manual_seed(seed)
    softmax = torch.softmax(torch.randn(num_rows, VOCAB, generator=generator), dim=1)
    logp = torch.log_softmax(2 * torch.randn(num_rows, VOCAB, generator=generator), dim=1)
    return softmax, logp, torch.rand(num_rows, 50, generator=generator, dtype=torch.float64)


def gradient_of(name: str, softmax: torch.Tensor, logp: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    labels = torch.zeros(len(logp), dtype=torch.int64)
    return SCHEMES[name].gradient(softmax, Teaching.of(logp, uniforms, labels))


@pytest.mark.parametrize("name", UNBIASED)
def test_gradients_of_sampled_schemes_average_to_full_distillation(name: str) -> None:
    num_draws = 4000
    softmax, logp, _ = draw(1)
    _, _, uniforms = draw(num_draws, seed=1)
    found = gradient_of(name, softmax.repeat(num_draws, 1), logp.repeat(num_draws, 1), uniforms)
    expected = gradient_of("full", softmax, logp, uniforms[:1])[0]
    standard_error = found.std(dim=0) / num_draws**0.5
    assert ((found.mean(dim=0) - expected).abs() <= 5 * standard_error + 2e-3).all()


@pytest.mark.parametrize("name", ["full", "topk_bucket_12", "topk_bucket_50"])
def test_a_student_equal_to_the_teacher_has_no_gradient(name: str) -> None:
    _, logp, uniforms = draw(3)
    assert gradient_of(name, logp.exp(), logp, uniforms).abs().max() < 4e-3  # what rounding leaves


@pytest.mark.parametrize("k", [6, 12, 25, 50])
def test_the_bucketed_gradient_is_autograds(k: int) -> None:
    _, logp, uniforms = draw(4)
    logits = torch.randn(4, VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    top, ids = logp.topk(k, dim=1)
    p, logs = _round(top).double().exp(), torch.log_softmax(logits, dim=1)
    head = logs.gather(1, ids)
    tail = (1 - p.sum(1)) * torch.log1p(-head.exp().sum(1))
    (-(p * head).sum() - tail.sum()).backward()
    found = gradient_of(f"topk_bucket_{k}", torch.softmax(logits.detach(), dim=1).float(), logp, uniforms)
    torch.testing.assert_close(found.double(), logits.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda scheme: scheme.name)
def test_gradients_add_up_to_zero(scheme: Scheme) -> None:
    assert gradient_of(scheme.name, *draw(5)).sum(dim=1).abs().max() < 1e-4


def test_rounding_on_the_device_is_the_formats() -> None:
    values = -torch.rand(2000, generator=torch.Generator().manual_seed(0)) * 20
    half = values.half().float()  # where both round once
    np.testing.assert_array_equal(_round(half).numpy(), round_float16(half.numpy(), MANTISSA_BITS).astype(np.float32))


def test_measures_equal_the_float64_truth() -> None:
    student, teacher, _ = draw(200)
    labels = torch.arange(200) % VOCAB
    logs, logp = student.log(), teacher
    measures = Measures()
    measures.add(logs[:77], logp[:77], labels[:77])
    measures.add(logs[77:], logp[77:], labels[77:])
    found = measures.summary()
    s, p = student.numpy().astype(np.float64), np.exp(teacher.numpy().astype(np.float64))
    assert found["kl_nats"] == pytest.approx((p * np.log(p / s)).sum(1).mean(), rel=1e-5)
    assert found["entropy_nats"] == pytest.approx(-(p * np.log(p)).sum(1).mean(), rel=1e-5)
    assert found["acceptance"] == pytest.approx(np.minimum(p, s).sum(1).mean(), rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(-np.log(s[np.arange(200), labels]).mean()), rel=1e-5)


def test_calibration_error_is_confidence_minus_accuracy_bin_by_bin() -> None:
    confidence = torch.tensor([0.05, 0.06, 0.95, 0.96, 1.0])
    is_right = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0])
    # The first bin: mean confidence .055, right .5. The last: .97 and 2/3.
    expected = 2 / 5 * (0.5 - 0.055) + 3 / 5 * (0.97 - 2 / 3)
    assert calibration_error(confidence, is_right) == pytest.approx(expected, rel=1e-5)


def test_draws_are_stored_as_distinct_ids_with_counts() -> None:
    few = draw_counts_bytes(np.full((256, 50), 7), VOCAB, 128)
    many = draw_counts_bytes(np.random.default_rng(0).integers(0, VOCAB, (256, 50)), VOCAB, 128)
    assert few < 3 < 50 < many


def test_a_tiny_study_writes_its_results_goes_on_and_plots(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, VOCAB, 60 * 129, dtype=np.uint16)
    np.save(tmp_path / "tokens.npy", tokens)
    (tmp_path / "text.json").write_text(json.dumps({"vocab_size": VOCAB}))
    size = Size(
        vocab_size=VOCAB,
        max_megabytes=1,
        teacher=TeacherConfig(layers=1, width=64, steps=2, batch_blocks=4),
        student=StudentConfig(layers=1, width=64, steps=2, batch_blocks=4),
        seeds=(0,),
        variations=("main", "small_batch"),
        device="cpu",
    )
    run_study(size, tmp_path)
    found = report.read_results(tmp_path)
    assert set(found["variations"]["main"]["seeds"][0]) == set(SCHEMES)
    assert found["variations"]["small_batch"]["settings"]["batch_blocks"] == 1
    assert found["bytes_per_token"]["tail_16_top_0"] > 0
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    run_study(size, tmp_path)  # every run is there
    assert report.read_results(tmp_path) == found
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")} == written
    table = report.tables(found)
    assert all(f"| {name} |" in table for name in SCHEMES)
