"""Drawing texts: by their own seed alone, from the teacher's distribution, with the teacher's log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.decoding.sampling import Completion, batches_by_length, stream_completions
from pipeline.teacher.model import Teacher
from storage.draws import hash_u64
from tests.naive_sampler import naive_distribution

SETTINGS = {"max_new_tokens": 10, "temperature": 1.0, "top_p": 1.0}


def draw_completions(
    teacher: Teacher, prompts: list[np.ndarray], seeds: np.ndarray, **settings: Any
) -> list[Completion]:
    """All side by side."""
    return list(stream_completions(teacher, prompts, seeds, num_slots=len(prompts), **settings))


def prompts_of(lengths: list[int], vocab_size: int) -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    return [rng.integers(0, vocab_size, length) for length in lengths]


def assert_same(found: Completion, expected: Completion) -> None:
    assert found.completion_ids.tolist() == expected.completion_ids.tolist()
    assert found.finish_reason == expected.finish_reason
    np.testing.assert_allclose(found.completion_logprobs, expected.completion_logprobs, atol=1e-5)


def test_a_text_does_not_depend_on_the_rest_of_its_batch(tiny_teacher: Callable[..., Teacher]) -> None:
    teacher = tiny_teacher(11, eos_token_id=8)
    prompts, seeds = prompts_of([1, 2, 5, 5, 9, 14, 14, 3, 7, 12], 11), hash_u64(7, np.arange(10))
    together = draw_completions(teacher, prompts, seeds, **SETTINGS)
    assert len({len(completion.completion_ids) for completion in together}) > 3, "rows leave the batch early"
    for i, prompt in enumerate(prompts):
        [alone] = draw_completions(teacher, [prompt], seeds[i : i + 1], **SETTINGS)
        assert_same(alone, together[i])
    backwards = draw_completions(teacher, prompts[::-1], seeds[::-1], **SETTINGS)
    for found, expected in zip(backwards[::-1], together, strict=True):
        assert_same(found, expected)


def test_a_seed_gives_one_text_and_another_seed_another(tiny_teacher: Callable[..., Teacher]) -> None:
    teacher, prompt = tiny_teacher(50), np.array([1, 2, 3])
    seeds = hash_u64(0, np.arange(20))
    first, again = (draw_completions(teacher, [prompt] * 20, seeds, **SETTINGS) for _ in range(2))
    for found, expected in zip(again, first, strict=True):
        assert_same(found, expected)
    assert len({tuple(completion.completion_ids) for completion in first}) == 20


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 0.8)])
def test_logprobs_are_those_of_a_teacher_forced_pass_at_temperature_1(
    tiny_teacher: Callable[..., Teacher],
    forced_logprobs: Callable[[Any, Any, Any], np.ndarray],
    temperature: float,
    top_p: float,
) -> None:
    teacher = tiny_teacher(31, eos_token_id=7)
    prompts = prompts_of([1, 4, 10, 17], 31)
    settings = {"max_new_tokens": 12, "temperature": temperature, "top_p": top_p}
    for prompt, found in zip(
        prompts, draw_completions(teacher, prompts, hash_u64(1, np.arange(4)), **settings), strict=True
    ):
        expected = forced_logprobs(teacher.model, prompt, found.completion_ids)
        np.testing.assert_allclose(found.completion_logprobs, expected, atol=1e-4)
        assert found.completion_logprobs.max() <= 0


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6), (2.0, 0.8)])
def test_over_many_seeds_the_first_token_follows_the_teacher(
    tiny_teacher: Callable[..., Teacher], temperature: float, top_p: float
) -> None:
    teacher, count, prompt = tiny_teacher(8), 3000, np.array([1, 5])
    found = draw_completions(
        teacher,
        [prompt] * count,
        hash_u64(3, np.arange(count)),
        max_new_tokens=1,
        temperature=temperature,
        top_p=top_p,
    )
    counts = np.bincount([int(completion.completion_ids[0]) for completion in found], minlength=8)
    with torch.inference_mode():
        logits = teacher.model(input_ids=torch.from_numpy(prompt)[None]).logits[0, -1]
    expected = count * naive_distribution(torch.log_softmax(logits, 0).numpy(), temperature, top_p)
    assert np.all(counts[expected == 0] == 0)
    possible = expected > 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    # The 0.9999 quantile for 7 degrees of freedom is 29.9.
    assert chi_square < 29.9


def test_a_text_ends_with_end_of_text_or_at_its_full_length(tiny_teacher: Callable[..., Teacher]) -> None:
    teacher = tiny_teacher(9, eos_token_id=4)
    found = draw_completions(teacher, [np.array([1])] * 60, hash_u64(5, np.arange(60)), **SETTINGS)
    assert {completion.finish_reason for completion in found} == {"stop", "length"}
    for completion in found:
        ids = completion.completion_ids.tolist()
        assert len(ids) == len(completion.completion_logprobs)
        assert 4 not in ids[:-1]
        if completion.finish_reason == "stop":
            assert ids[-1] == 4
        else:
            assert len(ids) == 10
            assert ids[-1] != 4


def test_without_an_end_of_text_every_text_is_full_length(tiny_teacher: Callable[..., Teacher]) -> None:
    found = draw_completions(tiny_teacher(5), [np.array([1])] * 20, hash_u64(5, np.arange(20)), **SETTINGS)
    assert {(len(completion.completion_ids), completion.finish_reason) for completion in found} == {(10, "length")}


def test_batches_by_length_hold_every_prompt_once_and_waste_little() -> None:
    lengths = [5, 1, 9, 5, 2, 2, 7]
    batches = batches_by_length([np.zeros(length) for length in lengths], 3)
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert sorted(np.concatenate(batches).tolist()) == list(range(7))
    assert [lengths[i] for batch in batches for i in batch] == sorted(lengths)


@pytest.mark.parametrize("num_slots", [1, 2, 3, 7, 50])
def test_texts_come_in_order_and_alike_however_many_slots_they_share(
    tiny_teacher: Callable[..., Teacher], num_slots: int
) -> None:
    teacher = tiny_teacher(11, eos_token_id=8)
    lengths = np.random.default_rng(0).integers(1, 15, 50).tolist()
    prompts, seeds = prompts_of(lengths, 11), hash_u64(7, np.arange(50))
    prompts[20:40] = [prompt for prompt in prompts[:10] for _ in range(2)]
    together = draw_completions(teacher, prompts, seeds, **SETTINGS)
    assert len({len(completion.completion_ids) for completion in together}) == 10
    streamed = stream_completions(teacher, prompts, seeds, num_slots=num_slots, **SETTINGS)
    for found, expected in zip(streamed, together, strict=True):
        assert_same(found, expected)


def test_a_single_token_needs_no_slot(tiny_teacher: Callable[..., Teacher]) -> None:
    settings = SETTINGS | {"max_new_tokens": 1}
    prompts, seeds = prompts_of([3, 1, 4, 1, 5], 11), hash_u64(2, np.arange(5))
    found = stream_completions(tiny_teacher(11), prompts, seeds, num_slots=2, **settings)
    assert [len(completion.completion_ids) for completion in found] == [1] * 5
