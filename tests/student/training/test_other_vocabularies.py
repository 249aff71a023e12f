"""A teacher with rows that stand for no token, and students with fewer and with more rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pipeline import SamplesConfig, SoftTargetsConfig
from storage import Cache
from student import EvaluateConfig, TrainConfig, evaluate, train
from student.errors import MissingRowError, VocabularyMismatchError
from student.evaluation.table import render
from student.model.loading import load_student
from student.model.presets import build_student

TEACHER_ROWS = 320


@pytest.fixture(scope="module", params=[0.05, None], ids=["sampled", "bucketed"])
def padded_cache(
    request: pytest.FixtureRequest, helpers: ModuleType, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Cache:
    """Of a random teacher, which gives a fifth of its probability to the 63 ids beyond its tokenizer's 257."""
    directory = tmp_path_factory.mktemp("padded")
    teacher = helpers.make_teacher(directory / "teacher", vocab_size=TEACHER_ROWS)
    config = helpers.tiny_config(
        teacher, text_file, directory / "cache", max_tokens=2000, kinds=("soft_targets",),
        soft_targets=SoftTargetsConfig(top_k=8, tail_weight=request.param, temperatures=(1.0, 2.0)),
    )  # fmt: skip
    cache: Cache = helpers.precomputed(config)
    return cache


def shape_file(directory: Path, shape: dict[str, Any], num_rows: int) -> str:
    path = directory / f"student{num_rows}.json"
    path.write_text(json.dumps(shape | {"vocab_size": num_rows}))
    return str(path)


def naive_figures(model: Any, cache: Cache) -> tuple[float, float]:
    """Mean KL as `evaluate` defines it, and the lost share, position by position in float64."""
    num_rows = model.config.vocab_size
    tau = cache.setting("config", "soft_targets", "tail_weight")
    kls, lost_shares = [], []
    for batch in cache.record_batches("soft_targets", "validation"):
        for row in batch.to_pylist():
            ids, logprobs, start = iter(row["ids"]), iter(row["logprobs"]), 0
            for length in row["segment_lengths"]:
                text = torch.tensor([row["input_ids"][start : start + length]])
                with torch.inference_mode():
                    student = torch.log_softmax(model(text).logits[0].double(), 1).tolist()
                for place in range(start, min(start + length, len(row["head_size"]))):
                    head = {next(ids): next(logprobs) for _ in range(row["head_size"][place])}
                    drawn = [next(ids) for _ in range(row["tail_size"][place])]
                    if place == start + length - 1:
                        continue
                    log_s = student[place - start]
                    kept = {i: p for i, p in head.items() if i < num_rows}
                    lost = [p for i, p in head.items() if i >= num_rows]
                    lost_draws = sum(i >= num_rows for i in drawn)
                    lost_shares.append(sum(map(math.exp, lost)) + (tau or 0) * lost_draws)
                    if tau is None:
                        tail_p = math.exp(row["tail_logprob"][place]) + sum(map(math.exp, lost))
                        tail_s = sum(math.exp(value) for i, value in enumerate(log_s) if i not in kept)
                        total = sum(map(math.exp, kept.values())) + tail_p
                        pairs = [(math.exp(p) / total, log_s[i]) for i, p in kept.items()]
                        pairs.append((tail_p / total, math.log(tail_s)))
                        kls.append(sum(p * (math.log(p) - s) for p, s in pairs))
                    else:
                        cross = -sum(math.exp(p) * log_s[i] for i, p in kept.items())
                        cross -= tau * sum(log_s[i] for i in drawn if i < num_rows)
                        own = -sum(math.exp(p) * p for p in lost) - tau * math.log(tau) * lost_draws
                        kls.append(cross - (row["entropy"][place] - own))
                start += length
    return sum(kls) / len(kls), sum(lost_shares) / len(lost_shares)


@pytest.mark.parametrize("num_rows", [257, 288, 400])
def test_students_with_other_rows_are_trained_and_measured(
    padded_cache: Cache, shape: dict[str, Any], tmp_path: Path, num_rows: int
) -> None:
    config = TrainConfig(
        cache=padded_cache.path, out=tmp_path / "out", preset=shape_file(tmp_path, shape, num_rows), max_steps=6,
        batch_blocks=4, device="cpu", quiet=True,
    )  # fmt: skip
    train(config)
    model = load_student(config.out).eval()
    assert model.config.vocab_size == num_rows
    found = evaluate(EvaluateConfig(student=config.out, cache=padded_cache.path, device="cpu", quiet=True))
    kl_nats, lost_mass = naive_figures(model, padded_cache)
    assert found["kl_nats"] == pytest.approx(kl_nats, rel=1e-4)
    assert found.get("lost_mass", 0.0) == pytest.approx(lost_mass, rel=1e-4)
    assert (lost_mass > 0.01) == (num_rows < TEACHER_ROWS)
    assert ("is on ids without a row in the student" in render(found)) == (num_rows < TEACHER_ROWS)


def test_a_preset_takes_the_teachers_rows(padded_cache: Cache) -> None:
    assert build_student("mini", padded_cache, seed=0).config.vocab_size == TEACHER_ROWS


def test_a_row_too_few_is_refused_before_the_first_step(
    padded_cache: Cache, shape: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(VocabularyMismatchError, match="256 entries, the cache's 257"):
        build_student(shape_file(tmp_path, shape, 256), padded_cache, seed=0)


def test_a_sampled_token_without_a_row_is_named(
    helpers: ModuleType, text_file: Path, shape: dict[str, Any], tmp_path: Path
) -> None:
    teacher = helpers.make_teacher(tmp_path / "teacher", vocab_size=TEACHER_ROWS)
    samples = SamplesConfig(num_prompts=20, prompt_tokens=6, max_new_tokens=12)
    cache = helpers.precomputed(
        helpers.tiny_config(
            teacher, text_file, tmp_path / "cache", max_tokens=2000, kinds=("samples",), samples=samples
        )
    )

    def run(num_rows: int) -> None:
        preset = shape_file(tmp_path, shape, num_rows)
        out = tmp_path / f"out{num_rows}"
        train(TrainConfig(cache=cache.path, out=out, preset=preset, max_steps=4, batch_samples=8, quiet=True))

    with pytest.raises(MissingRowError):
        run(288)
    run(TEACHER_ROWS)
