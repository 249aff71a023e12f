"""Beam search: the candidates and scores of transformers' own, for prompts of any lengths in one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from pipeline.decoding.beam_search import Finished, beam_search
from pipeline.teacher.model import Teacher

MAX_NEW_TOKENS = 7


def prompts_of(lengths: list[int], vocab_size: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab_size, length) for length in lengths]


@torch.inference_mode()
def search_of_transformers(
    teacher: Teacher, prompt: np.ndarray, *, num_beams: int, max_new_tokens: int, length_penalty: float
) -> dict[tuple[int, ...], float]:
    """Candidates with their scores, those that stand for nothing left out."""
    ends = list(teacher.end_ids)
    teacher.model.generation_config = GenerationConfig()
    found = teacher.model.generate(
        input_ids=torch.from_numpy(prompt)[None],
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        generation_config=GenerationConfig(
            num_beams=num_beams,
            num_return_sequences=num_beams,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            length_penalty=length_penalty,
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else 0,
            output_scores=True,
            return_dict_in_generate=True,
        ),
    )
    candidates: dict[tuple[int, ...], float] = {}
    for ids, score in zip(found.sequences[:, len(prompt) :].tolist(), found.sequences_scores.tolist(), strict=True):
        length = next((place for place, token in enumerate(ids, 1) if token in ends), len(ids))
        if score > -1e6:
            candidates[tuple(ids[:length])] = score
    return candidates


def assert_same(found: list[Finished], expected: dict[tuple[int, ...], float], *, length_penalty: float) -> None:
    assert {tuple(f.ids.tolist()) for f in found} == set(expected)
    scores = [f.sum_logprob / len(f.ids) ** length_penalty for f in found]
    assert scores == sorted(scores, reverse=True)
    np.testing.assert_allclose(scores, [expected[tuple(f.ids.tolist())] for f in found], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("eos", [None, 2])
@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0, -1.0])
def test_candidates_are_those_of_transformers(
    tiny_teacher: Callable[..., Teacher], length_penalty: float, eos: int | None
) -> None:
    endings = set()
    for seed, (vocab_size, num_beams) in enumerate([(3, 2), (5, 3), (7, 4), (9, 2), (12, 6), (30, 4), (61, 3), (4, 7)]):
        teacher = tiny_teacher(vocab_size, eos_token_id=eos, seed=seed)
        settings: dict[str, Any] = {
            "num_beams": num_beams, "max_new_tokens": MAX_NEW_TOKENS, "length_penalty": length_penalty
        }  # fmt: skip
        prompts = prompts_of([4, 1, 9, 4, 2, 13, 4, 1], vocab_size, seed)
        for prompt, found in zip(prompts, beam_search(teacher, prompts, **settings), strict=True):
            assert_same(found, search_of_transformers(teacher, prompt, **settings), length_penalty=length_penalty)
            endings |= {len(f.ids) for f in found}
    assert len(endings) > 3 if eos is not None else endings == {MAX_NEW_TOKENS}


@pytest.mark.parametrize("ends", [(2, 0), (0, 1, 2), (1, 2, 3, 4)])
def test_several_ends_end_candidates_as_in_transformers(
    tiny_teacher: Callable[..., Teacher], ends: tuple[int, ...]
) -> None:
    for seed, (vocab_size, num_beams) in enumerate([(5, 3), (7, 4), (9, 2), (12, 6), (30, 4)]):
        teacher = tiny_teacher(vocab_size, eos_token_id=ends[0], seed=seed)
        teacher.end_ids = ends
        settings: dict[str, Any] = {
            "num_beams": num_beams, "max_new_tokens": MAX_NEW_TOKENS, "length_penalty": 1.0
        }  # fmt: skip
        prompts = prompts_of([4, 1, 9, 4, 2], vocab_size, seed)
        for prompt, found in zip(prompts, beam_search(teacher, prompts, **settings), strict=True):
            assert_same(found, search_of_transformers(teacher, prompt, **settings), length_penalty=1.0)
            assert all(token not in ends for f in found for token in f.ids[:-1].tolist())


@pytest.mark.parametrize("max_new_tokens", [1, 2])
def test_few_tokens_are_searched_like_many(tiny_teacher: Callable[..., Teacher], max_new_tokens: int) -> None:
    teacher = tiny_teacher(6, eos_token_id=1)
    settings: dict[str, Any] = {"num_beams": 5, "max_new_tokens": max_new_tokens, "length_penalty": 1.0}
    prompts = prompts_of([3, 5], 6, seed=0)
    for prompt, found in zip(prompts, beam_search(teacher, prompts, **settings), strict=True):
        assert_same(found, search_of_transformers(teacher, prompt, **settings), length_penalty=1.0)


def test_a_vocabulary_with_fewer_continuations_than_beams_gives_as_many_candidates_as_there_are(
    tiny_teacher: Callable[..., Teacher],
) -> None:
    [found] = beam_search(tiny_teacher(3), [np.array([1])], num_beams=8, max_new_tokens=1, length_penalty=1.0)
    assert sorted(f.ids.tolist() for f in found) == [[0], [1], [2]]


def test_the_same_prompt_twice_has_the_same_candidates(tiny_teacher: Callable[..., Teacher]) -> None:
    teacher, [prompt, other] = tiny_teacher(9, eos_token_id=2), prompts_of([5, 7], 9, seed=1)
    first, _, again = beam_search(teacher, [prompt, other, prompt], num_beams=4, max_new_tokens=6, length_penalty=1.0)
    assert [f.ids.tolist() for f in first] == [f.ids.tolist() for f in again]
