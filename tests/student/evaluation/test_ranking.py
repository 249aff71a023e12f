"""Rankings of candidates against loops over pairs, and the teacher's own ranking."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from storage import Cache
from storage.rows.beams import decode
from student.evaluation import evaluate_model
from student.evaluation.ranking import kendall_tau, rank_prompts, ranking_details, reciprocal_rank, selection_figures
from tests.student.evaluation.naive import validation_rows


def naive_tau(student: list[float], teacher: list[float]) -> float:
    concordant = discordant = untied_student = untied_teacher = 0
    for i, j in combinations(range(len(teacher)), 2):
        here, there = student[i] - student[j], teacher[i] - teacher[j]
        untied_student += here != 0
        untied_teacher += there != 0
        concordant += here * there > 0
        discordant += here * there < 0
    if not untied_teacher:
        return math.nan
    return (concordant - discordant) / math.sqrt(untied_student * untied_teacher) if untied_student else 0.0


@pytest.mark.parametrize("num_candidates", [2, 3, 4, 7])
def test_tau_and_rank_equal_loops_with_and_without_ties(num_candidates: int) -> None:
    rng = np.random.default_rng(num_candidates)
    for most in (2, 3, 100):
        for _ in range(50):
            student, teacher = rng.integers(0, most, (2, num_candidates)).astype(np.float64)
            expected = naive_tau(student.tolist(), teacher.tolist())
            assert kendall_tau(student, teacher) == pytest.approx(expected, nan_ok=True)
            places = [
                place
                for place, score in enumerate(sorted(student, reverse=True), start=1)
                if score == student[num_candidates - 1]
            ]
            assert reciprocal_rank(student, num_candidates - 1) == pytest.approx(1 / np.mean(places))


def test_tau_of_orders_that_are_known() -> None:
    up = np.arange(5.0)
    assert kendall_tau(up, up) == pytest.approx(1.0)
    assert kendall_tau(up, -up) == pytest.approx(-1.0)
    assert kendall_tau(np.zeros(5), up) == 0.0
    assert math.isnan(kendall_tau(up, np.zeros(5)))
    # The example of Kendall 1945 in short: one of six pairs tied here, none there, one discordant.
    assert kendall_tau(np.array([1.0, 1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0, 3.0])) == pytest.approx(
        (4 - 1) / math.sqrt(5 * 6)
    )


@pytest.fixture
def beams_cache(make_cache: Callable[..., Cache], helpers: ModuleType) -> Cache:
    beams = helpers.BeamsConfig(num_prompts=40, num_beams=4, num_candidates=3, prompt_tokens=4, max_new_tokens=4)
    return make_cache(kinds=("beams",), beams=beams, validation_fraction=0.4, max_tokens=None)


@torch.inference_mode()
def naive_rankings(model: Any, cache: Cache) -> list[dict[str, float]]:
    found = []
    for row in (row for batch in cache.record_batches("beams", "validation") for row in decode(batch)):
        scores = []
        for candidate in row.candidates:
            ids = [*row.prompt_ids.tolist(), *candidate.candidate_ids.tolist()]
            logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), 1)
            length = len(candidate.candidate_ids)
            total = sum(float(logprobs[t - 1, ids[t]]) for t in range(len(row.prompt_ids), len(ids)))
            scores.append(total / length)
        if len(scores) > 1:
            found.append(
                {
                    "mean_reciprocal_rank": 1 / (1 + sorted(scores, reverse=True).index(scores[0])),
                    "mean_reciprocal_rank_chance": np.mean([1 / place for place in range(1, len(scores) + 1)]),
                    "kendall_tau": naive_tau(scores, [candidate.score for candidate in row.candidates]),
                }
            )
    return found


def test_figures_equal_the_naive_ones(beams_cache: Cache, make_student: Callable[..., Any]) -> None:
    model = make_student()
    with torch.inference_mode():
        ranked = rank_prompts(model, beams_cache)
    expected = naive_rankings(model, beams_cache)
    details = ranking_details(ranked)
    assert len(ranked) == selection_figures(ranked)["num_selections"] == len(expected) > 10
    for name in expected[0]:
        assert details[name] == pytest.approx(np.nanmean([row[name] for row in expected])), name
    for name in ("mean_reciprocal_rank", "kendall_tau"):
        low, high = details[f"{name}_interval"]
        assert low < details[name] < high


def test_the_teacher_itself_ranks_perfectly(beams_cache: Cache, teacher_dir: Any) -> None:
    teacher = GPT2LMHeadModel.from_pretrained(teacher_dir).eval()
    with torch.inference_mode():
        ranked = rank_prompts(teacher, beams_cache)
    details = ranking_details(ranked)
    assert selection_figures(ranked)["selection_accuracy"] == 1.0
    assert details["mean_reciprocal_rank"] == 1.0
    assert details["kendall_tau"] == pytest.approx(1.0)
    assert details["kendall_tau_interval"] == pytest.approx([1.0, 1.0])


def test_without_candidates_every_figure_is_none(make_cache: Callable[..., Cache], make_student: Any) -> None:
    ranked = rank_prompts(make_student(), make_cache(kinds=("samples",)))
    assert ranked.shape == (0, 5)
    assert set(ranking_details(ranked).values()) == {None}
    assert selection_figures(ranked) == {"selection_accuracy": None, "selection_chance": None, "num_selections": 0}


def test_a_teacher_that_tells_no_two_apart_has_no_tau() -> None:
    ranked = np.array([[1.0, 0.5, 1.0, 0.75, np.nan], [0.0, 0.5, 0.5, 0.75, -1.0], [1.0, 0.5, 1.0, 0.75, 1.0]])
    details = ranking_details(ranked)
    assert details["kendall_tau"] == 0.0
    assert details["mean_reciprocal_rank"] == pytest.approx(2.5 / 3)
    assert details["kendall_tau_interval"] == [-1.0, 1.0]


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
