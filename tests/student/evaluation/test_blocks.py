"""Perplexity, divergence and agreement over held-out blocks against loops with the whole vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from transformers import GPT2LMHeadModel

from pipeline import SoftTargetsConfig
from storage import Cache
from student.evaluation import blocks, evaluate_model, ranking
from tests.student.evaluation.naive import full_kl, naive_measures, validation_rows

CACHES = {"sampled": "cache", "bucketed": "bucketed_cache", "some wanted": "wanted_cache"}


@pytest.mark.parametrize("kind", CACHES)
def test_measures_equal_the_naive_ones(
    request: pytest.FixtureRequest, make_student: Callable[..., Any], kind: str
) -> None:
    cache: Cache = request.getfixturevalue(CACHES[kind])
    model = make_student()
    found = evaluate_model(model, cache)
    expected = naive_measures(model, cache, tail_weight=None if kind == "bucketed" else 0.05)
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


def test_what_does_not_fit_into_memory_is_measured_in_parts(
    cache: Cache, make_student: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_student()
    whole = evaluate_model(model, cache)
    sizes: list[int] = []

    for module, name in ((blocks, "block_batch"), (ranking, "beam_batch")):
        original = getattr(module, name)

        def limited(rows: pa.RecordBatch, *args: Any, original: Any = original, **settings: Any) -> Any:
            if rows.num_rows > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            sizes.append(rows.num_rows)
            return original(rows, *args, **settings)

        monkeypatch.setattr(module, name, limited)
    assert evaluate_model(model, cache) == pytest.approx(whole, rel=1e-6)
    assert sum(sizes) == sum(cache.num_rows(kind, "validation") for kind in ("soft_targets", "beams"))
    monkeypatch.setattr(blocks, "block_batch", lambda *_, **__: torch.empty(1 << 60))
    with pytest.raises(RuntimeError, match=r"can't allocate memory|out of memory"):
        evaluate_model(model, cache)


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
