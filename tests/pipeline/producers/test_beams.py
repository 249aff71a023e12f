"""Candidates: what the search finds, scored as one teacher-forced pass over each candidate scores it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import BeamsConfig, PrecomputeConfig
from pipeline.corpus.blocks import PromptSet
from pipeline.producers.beams import BeamsProducer
from pipeline.teacher.model import Teacher
from storage import Cache
from storage.rows import beams
from storage.rows.beams import BeamRow, Candidate

Scorer = Callable[[Any, Any, Any], np.ndarray]


@pytest.fixture
def search(tmp_path: Path) -> Callable[..., list[BeamRow]]:
    def search(
        teacher: Teacher, prompts: list[list[int]], *, batch_tokens: int = 10_000, **settings: object
    ) -> list[BeamRow]:
        config = PrecomputeConfig(
            teacher="", data="", out=tmp_path, beams=BeamsConfig(**settings), batch_tokens=batch_tokens
        )
        prompt_set = PromptSet(
            prompt_id=[100 + i for i in range(len(prompts))], prompt_ids=[np.array(ids) for ids in prompts]
        )
        producer = BeamsProducer(teacher, config, {"train": prompt_set}, beams.schema(teacher.vocab_size))
        batches = producer.record_batches("train", 0, len(prompts), 2)
        return [row for batch in batches for row in beams.decode(batch)]

    return search


def ids_of(row: BeamRow) -> list[list[int]]:
    return [candidate.candidate_ids.tolist() for candidate in row.candidates]


def check_candidates(
    row: BeamRow, model: Any, score: Scorer, *, length_penalty: float, eos: int | None, max_new_tokens: int
) -> None:
    assert len({tuple(ids) for ids in ids_of(row)}) == len(row.candidates), "no two alike"
    scores = [candidate.score for candidate in row.candidates]
    assert scores == sorted(scores, reverse=True), "best first"
    for candidate in row.candidates:
        ids = candidate.candidate_ids.tolist()
        total = score(model, row.prompt_ids, ids).sum()
        assert candidate.sum_logprob == pytest.approx(total, abs=1e-3)
        assert candidate.score == pytest.approx(total / len(ids) ** length_penalty, abs=1e-3)
        assert 1 <= len(ids) <= max_new_tokens
        assert eos not in ids[:-1]
        assert candidate.finish_reason == ("stop" if ids[-1] == eos else "length")
        assert candidate.finish_reason == "stop" or len(ids) == max_new_tokens


@pytest.mark.parametrize("eos", [None, 2, 0])
@pytest.mark.parametrize("length_penalty", [0.0, 0.5, 1.0, 2.0])
def test_candidates_carry_the_teachers_own_scores(
    tiny_teacher: Callable[..., Teacher],
    search: Callable[..., list[BeamRow]],
    forced_logprobs: Scorer,
    length_penalty: float,
    eos: int | None,
) -> None:
    teacher = tiny_teacher(9, eos_token_id=eos)
    prompts = [[1, 3], [4, 4, 5, 6], [7, 8], [5], [6, 1, 7, 3]]
    settings = {"num_beams": 5, "num_candidates": 4, "max_new_tokens": 6, "length_penalty": length_penalty}
    rows = search(teacher, prompts, **settings)
    assert [row.prompt_ids.tolist() for row in rows] == prompts
    assert [row.row_id for row in rows] == [0, 1, 2, 3, 4]
    assert [row.prompt_id for row in rows] == [100, 101, 102, 103, 104]
    for row in rows:
        assert 2 <= len(row.candidates) <= 4
        check_candidates(row, teacher.model, forced_logprobs, length_penalty=length_penalty, eos=eos, max_new_tokens=6)
        assert row.candidates[0].text == "".join(f"{i} " for i in ids_of(row)[0])
    if eos is not None:
        assert any(candidate.finish_reason == "stop" for row in rows for candidate in row.candidates)


def all_candidates(vocab_size: int, max_new_tokens: int, eos: int | None) -> list[list[int]]:
    others = [token for token in range(vocab_size) if token != eos]
    found = [list(ids) for ids in itertools.product(others, repeat=max_new_tokens)]
    if eos is not None:
        for length in range(max_new_tokens):
            found += [[*ids, eos] for ids in itertools.product(others, repeat=length)]
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("eos", [None, 4])
def test_with_enough_beams_the_best_candidates_are_those_of_an_exhaustive_search(
    tiny_teacher: Callable[..., Teacher],
    search: Callable[..., list[BeamRow]],
    forced_logprobs: Scorer,
    eos: int | None,
    length_penalty: float,
    seed: int,
) -> None:
    teacher, prompt = tiny_teacher(5, eos_token_id=eos, seed=seed), [1, 0, 3]
    settings = {"num_beams": 25, "num_candidates": 4, "max_new_tokens": 3, "length_penalty": length_penalty}
    [row] = search(teacher, [prompt], **settings)

    def score(ids: list[int]) -> float:
        return float(forced_logprobs(teacher.model, prompt, ids).sum()) / len(ids) ** length_penalty

    best = sorted(all_candidates(5, 3, eos), key=score, reverse=True)
    assert ids_of(row)[0] == best[0]
    assert row.candidates[0].score == pytest.approx(score(best[0]), abs=1e-4)
    assert ids_of(row) == best[:4]


def test_a_prompts_candidates_do_not_depend_on_its_batch(
    tiny_teacher: Callable[..., Teacher], search: Callable[..., list[BeamRow]]
) -> None:
    teacher = tiny_teacher(12, eos_token_id=2)
    prompts = [[1, 3], [4, 4, 5], [7, 8], [5, 9], [6, 1, 7]]
    settings = {"num_beams": 4, "num_candidates": 3, "max_new_tokens": 5}
    together = search(teacher, prompts, **settings)
    assert [ids_of(row) for row in search(teacher, prompts, batch_tokens=1, **settings)] == [
        ids_of(row) for row in together
    ]
    for prompt, row in zip(prompts, together, strict=True):
        [alone] = search(teacher, [prompt], **settings)
        assert ids_of(alone) == ids_of(row)


@pytest.mark.parametrize(
    "setting",
    [
        {"repetition_penalty": 5.0},
        {"no_repeat_ngram_size": 1},
        {"min_new_tokens": 5},
        {"length_penalty": 3.0, "early_stopping": True},
    ],
)
def test_generation_settings_shipped_with_a_teacher_do_not_bend_the_search(
    tiny_teacher: Callable[..., Teacher], search: Callable[..., list[BeamRow]], setting: dict[str, Any]
) -> None:
    teacher = tiny_teacher(9, eos_token_id=2)
    settings = {"num_beams": 4, "num_candidates": 4, "max_new_tokens": 6}
    expected = search(teacher, [[1, 3], [7, 8]], **settings)
    teacher.model.generation_config.update(**setting)
    found = search(teacher, [[1, 3], [7, 8]], **settings)
    assert [ids_of(row) for row in found] == [ids_of(row) for row in expected]


def test_a_tokenizer_without_end_of_text_is_stopped_by_the_models_own(
    tiny_teacher: Callable[..., Teacher], wrap_teacher: Callable[..., Teacher], search: Callable[..., list[BeamRow]]
) -> None:
    teacher = tiny_teacher(9)
    settings = {"num_beams": 4, "num_candidates": 4, "max_new_tokens": 6}
    end = ids_of(search(teacher, [[1, 3], [7, 8]], **settings)[0])[0][1]
    teacher.model.generation_config.eos_token_id = [end]
    for row in search(wrap_teacher(teacher.model), [[1, 3], [7, 8]], **settings):
        for candidate in row.candidates:
            ids = candidate.candidate_ids.tolist()
            assert end not in ids[:-1]
            assert candidate.finish_reason == ("stop" if ids[-1] == end else "length")


def test_cached_beams_are_what_the_teacher_says(
    cache: Cache, teacher_model: Any, tokenizer: Any, forced_logprobs: Scorer
) -> None:
    rows = [row for batch in cache.record_batches("beams", "validation") for row in beams.decode(batch)]
    assert len(rows) == 4
    for row in rows:
        assert len(row.prompt_ids) == 6
        check_candidates(row, teacher_model, forced_logprobs, length_penalty=1.0, eos=256, max_new_tokens=6)
        best: Candidate = row.candidates[0]
        assert best.text == tokenizer.decode(best.candidate_ids.tolist(), skip_special_tokens=True)
