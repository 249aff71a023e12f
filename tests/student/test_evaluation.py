"""Measures of a student against loops over documents with the whole vocabulary, and against the teacher itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from pipeline import SoftTargetsConfig
from storage import Cache
from storage.errors import NoCacheError
from student import EvaluateConfig, evaluate
from student.errors import NoSuchStudentError, VocabularyMismatchError
from student.evaluation import evaluate_model, ratio_with_error


@torch.inference_mode()
def predictions(model: Any, row: dict[str, Any]) -> Iterator[tuple[int, int, np.ndarray]]:
    """(target, label, log-probabilities) of every valid target, one document at a time, in float64."""
    start = 0
    for length in row["segment_lengths"]:
        ids = row["input_ids"][start : start + length]
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
        logprobs = torch.log_softmax(logits, dim=1).numpy()
        yield from ((start + i, ids[i + 1], logprobs[i]) for i in range(length - 1))
        start += length


def validation_rows(cache: Cache, kind: str = "soft_targets") -> list[dict[str, Any]]:
    return [row for batch in cache.record_batches(kind, "validation") for row in batch.to_pylist()]


def heads_of(row: dict[str, Any]) -> list[tuple[list[int], np.ndarray, list[int]]]:
    ids, logprobs = iter(row["ids"]), iter(row["logprobs"])
    entries = []
    for head_size, tail_size in zip(row["head_size"], row["tail_size"], strict=True):
        head = [next(ids) for _ in range(head_size)]
        entries.append((head, np.array([next(logprobs) for _ in head]), [next(ids) for _ in range(tail_size)]))
    return entries


def naive_measures(model: Any, cache: Cache, *, tail_weight: float | None) -> dict[str, float]:
    nll, teacher_nll, kl, agrees = [], [], [], []
    ends = []
    for row in validation_rows(cache):
        entries = heads_of(row)
        for t, label, logprobs in predictions(model, row):
            head, head_logprobs, tail = entries[t]
            nll.append(-logprobs[label])
            teacher_nll.append(-row["label_logprob"][t])
            rest = np.setdiff1d(np.arange(len(logprobs)), head)
            if tail_weight is None:
                p = np.exp([*head_logprobs, row["tail_logprob"][t]])
                p /= p.sum()
                log_q = np.append(logprobs[head], np.log(np.exp(logprobs[rest]).sum()) if len(rest) else -np.inf)
                used = p > 0
                kl.append((p[used] * (np.log(p[used]) - log_q[used])).sum())
            else:
                cross = -(np.exp(head_logprobs) * logprobs[head]).sum() - tail_weight * logprobs[tail].sum()
                kl.append(cross - row["entropy"][t])
            best = [i for i, x in zip(head, head_logprobs, strict=True) if x == head_logprobs.max()]
            agrees.append(logprobs.argmax() in best)
        ends.append(len(kl))
    blocks = np.split(np.array(kl) - np.mean(kl), ends[:-1])
    spread = sum(block.sum() ** 2 for block in blocks) * len(blocks) / (len(blocks) - 1)
    return {
        "perplexity": math.exp(np.mean(nll)),
        "teacher_perplexity": math.exp(np.mean(teacher_nll)),
        "kl_nats": float(np.mean(kl)),
        "kl_standard_error": math.sqrt(spread) / len(kl),
        "top1_agreement": float(np.mean(agrees)),
        "num_targets": len(nll),
    }


@pytest.mark.parametrize("kind", ["sampled", "bucketed"])
def test_measures_equal_the_naive_ones(
    request: pytest.FixtureRequest, make_student: Callable[..., Any], kind: str
) -> None:
    cache: Cache = request.getfixturevalue("cache" if kind == "sampled" else "bucketed_cache")
    model = make_student()
    found = evaluate_model(model, cache)
    expected = naive_measures(model, cache, tail_weight=0.05 if kind == "sampled" else None)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert found["kl_is_lower_bound"] == (kind == "bucketed")
    assert found["num_parameters"] == sum(p.numel() for p in model.parameters())


def test_the_way_of_batching_changes_nothing(cache: Cache, make_student: Callable[..., Any]) -> None:
    model = make_student()
    expected = evaluate_model(model, cache)
    for batch_blocks in (1, 5, 1000):
        found = evaluate_model(model, cache, batch_blocks=batch_blocks)
        assert found == pytest.approx(expected, rel=1e-6)
    for max_blocks in (1, 16, 17, 1000):
        part = evaluate_model(model, cache, batch_blocks=5, max_blocks=max_blocks)
        rows = validation_rows(cache)[:max_blocks]
        assert part["num_targets"] == sum(length - 1 for row in rows for length in row["segment_lengths"])


def full_kl(teacher: Any, student: Any, cache: Cache) -> float:
    values = []
    for row in validation_rows(cache):
        for (_, _, p), (_, _, q) in zip(predictions(teacher, row), predictions(student, row), strict=True):
            values.append((np.exp(p) * (p - q)).sum())
    return float(np.mean(values))


def test_a_head_of_the_whole_vocabulary_gives_the_full_divergence(
    make_cache: Callable[..., Cache], make_student: Callable[..., Any], teacher_dir: Path
) -> None:
    settings = SoftTargetsConfig(top_k=257, tail_weight=None, mantissa_bits=10)
    cache, model = make_cache(kinds=("soft_targets",), soft_targets=settings, max_tokens=2500), make_student()
    teacher = GPT2LMHeadModel.from_pretrained(teacher_dir).eval()
    found = evaluate_model(model, cache)
    assert found["kl_nats"] == pytest.approx(full_kl(teacher, model, cache), rel=1e-3)
    expected = naive_measures(model, cache, tail_weight=None)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_the_sampled_tail_estimates_and_the_bucketed_one_bounds_the_full_divergence(
    cache: Cache, bucketed_cache: Cache, make_student: Callable[..., Any], teacher_dir: Path
) -> None:
    model, teacher = make_student(), GPT2LMHeadModel.from_pretrained(teacher_dir).eval()
    truth = full_kl(teacher, model, cache)
    sampled, bucketed = evaluate_model(model, cache), evaluate_model(model, bucketed_cache)
    assert abs(sampled["kl_nats"] - truth) < 4 * sampled["kl_standard_error"] + 0.01
    assert bucketed["kl_nats"] < truth


@pytest.mark.parametrize("kind", ["sampled", "bucketed"])
def test_the_teacher_itself_as_a_student_is_perfect(
    request: pytest.FixtureRequest, teacher_dir: Path, kind: str
) -> None:
    cache: Cache = request.getfixturevalue("cache" if kind == "sampled" else "bucketed_cache")
    found = evaluate(EvaluateConfig(student=teacher_dir, cache=cache.path, device="cpu", quiet=True))
    if kind == "sampled":
        assert abs(found["kl_nats"]) < 4 * found["kl_standard_error"]
        assert found["kl_standard_error"] < 0.02
    else:
        assert 0 <= found["kl_nats"] < 1e-4
    assert found["perplexity"] == pytest.approx(found["teacher_perplexity"], rel=1e-3)
    assert found["teacher_perplexity"] == pytest.approx(cache.manifest.teacher_perplexity("validation"), rel=1e-6)
    assert found["top1_agreement"] > 0.999
    assert found["selection_accuracy"] == 1.0
    assert found["selection_chance"] == pytest.approx(0.25)
    assert found["num_selections"] == 4


def test_the_standard_error_covers_positions_that_share_a_block() -> None:
    rng, num_trials, truth = np.random.default_rng(0), 1000, 2.0
    errors = []
    for _ in range(num_trials):
        counts = rng.integers(5, 100, 60)
        shared = rng.normal(truth, 1, 60)
        sums = np.array([rng.normal(mean, 1, count).sum() for mean, count in zip(shared, counts, strict=True)])
        mean, error = ratio_with_error(torch.from_numpy(sums), torch.from_numpy(counts).double())
        assert error is not None
        errors.append((mean - truth) / error)
    # A share of 0.95 within 1.96 errors has a standard deviation of 0.007; counting positions as draws gives 0.2.
    assert 0.91 < np.mean(np.abs(errors) < 1.96) < 0.98
    assert ratio_with_error(torch.tensor([3.0]), torch.tensor([2.0])) == (1.5, None)


def test_selection_equals_the_naive_choice(
    make_cache: Callable[..., Cache], make_student: Callable[..., Any], helpers: ModuleType
) -> None:
    beams = helpers.BeamsConfig(num_prompts=60, num_beams=3, num_candidates=3, prompt_tokens=4, max_new_tokens=4)
    cache, model = make_cache(kinds=("beams",), beams=beams, validation_fraction=0.4, max_tokens=None), make_student()
    num_right, chances = 0, []
    rows = validation_rows(cache, "beams")
    for row in rows:
        ids, scores = iter(row["candidate_ids"]), []
        for length in row["candidate_lengths"]:
            prompt, candidate = row["prompt_ids"], [next(ids) for _ in range(length)]
            with torch.inference_mode():
                logprobs = torch.log_softmax(model(torch.tensor([prompt + candidate])).logits[0].double(), 1)
            scores.append(sum(float(logprobs[len(prompt) - 1 + i, t]) for i, t in enumerate(candidate)) / length)
        if len(scores) > 1:
            num_right += scores.index(max(scores)) == 0
            chances.append(1 / len(scores))
    found = evaluate_model(model, cache)
    assert found["num_selections"] == len(chances) > 15
    assert found["selection_accuracy"] == num_right / len(chances)
    assert 0 < num_right < len(chances)
    assert found["selection_chance"] == pytest.approx(np.mean(chances))


def test_a_tail_drawn_at_another_temperature_gives_a_lower_bound(
    make_cache: Callable[..., Cache], teacher_dir: Path, make_student: Callable[..., Any]
) -> None:
    settings = SoftTargetsConfig(top_k=4, tail_weight=0.05, temperatures=(2.0,))
    cache = make_cache(kinds=("soft_targets",), soft_targets=settings, max_tokens=2500)
    teacher = GPT2LMHeadModel.from_pretrained(teacher_dir).eval()
    found = evaluate_model(teacher, cache)
    assert found["kl_is_lower_bound"]
    assert 0 <= found["kl_nats"] < 1e-4
    model = make_student()
    assert evaluate_model(model, cache)["kl_nats"] == pytest.approx(
        naive_measures(model, cache, tail_weight=None)["kl_nats"], rel=1e-4
    )


def test_a_cache_without_heads_measures_everything_but_agreement(
    make_cache: Callable[..., Cache], make_student: Callable[..., Any]
) -> None:
    settings = SoftTargetsConfig(top_k=0, tail_weight=0.9)
    cache = make_cache(kinds=("soft_targets",), soft_targets=settings, max_tokens=2500)
    found = evaluate_model(make_student(), cache)
    num_heads = sum(size > 0 for row in validation_rows(cache) for size in row["head_size"])
    assert num_heads == 0
    assert found["top1_agreement"] is None
    assert math.isfinite(found["kl_nats"])


def test_measures_without_rows_are_none(make_cache: Callable[..., Cache], make_student: Callable[..., Any]) -> None:
    model = make_student()
    nothing = evaluate_model(model, make_cache(kinds=("samples",), max_tokens=2500))
    assert {name for name, value in nothing.items() if value is not None} == {"num_parameters", "num_selections"}
    assert nothing["num_selections"] == 0
    only_blocks = evaluate_model(model, make_cache(kinds=("soft_targets",), max_tokens=2500))
    assert only_blocks["kl_nats"] is not None
    assert only_blocks["selection_accuracy"] is None


def test_what_cannot_be_evaluated(
    cache: Cache, teacher_dir: Path, make_student: Callable[..., Any], tmp_path: Path
) -> None:
    make_student(vocab_size=300).save_pretrained(tmp_path / "other")
    with pytest.raises(NoSuchStudentError):
        evaluate(EvaluateConfig(student=tmp_path / "nothing", cache=cache.path, quiet=True))
    with pytest.raises(VocabularyMismatchError):
        evaluate(EvaluateConfig(student=tmp_path / "other", cache=cache.path, quiet=True))
    with pytest.raises(NoCacheError):
        evaluate(EvaluateConfig(student=teacher_dir, cache=tmp_path / "nothing", quiet=True))
