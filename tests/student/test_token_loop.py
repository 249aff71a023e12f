"""The loop by which a student writes: what it reads, and where texts end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from student.errors import ArchitectureError, BrokenStudentError
from student.generation.candidates import continuation_scores
from student.model.architecture import check_architecture
from student.token_loop import collect_texts, draw_tokens
from tests.heads import make_model


def test_each_distinct_prompt_is_read_once_with_positions_of_its_own(
    make_student: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, read = make_student(), []
    next(draw_tokens(model, [np.array([1])], [1], temperature=1.0, top_p=1.0))  # This tries out the key-value cache.
    original = model.forward

    def forward(input_ids: torch.Tensor, position_ids: torch.Tensor, **settings: Any) -> Any:
        read.append((input_ids.shape, position_ids[:, -1].tolist()))
        return original(input_ids=input_ids, position_ids=position_ids, **settings)

    monkeypatch.setattr(model, "forward", forward)
    prompts = [np.array(ids) for ids in ([5, 6, 7], [8], [5, 6, 7], [8])]
    steps = list(islice(draw_tokens(model, prompts, [1, 1, 2, 2], temperature=1.0, top_p=1.0), 3))
    assert read == [((2, 3), [2, 0]), ((4, 1), [3, 1, 3, 1]), ((4, 1), [4, 2, 4, 2])]
    assert [len(tokens) for tokens in steps] == [4, 4, 4]


def test_texts_end_with_their_end_of_text_and_no_step_is_taken_after_the_last_of_them() -> None:
    asked = []

    def steps() -> Iterator[list[int]]:
        for tokens in ([1, 9, 9], [2, 3, 9], [9, 9, 4], [5, 5, 5]):
            asked.append(tokens)
            yield tokens

    assert collect_texts(steps(), [9]) == [[1, 2, 9], [9], [9]]
    assert len(asked) == 3
    assert collect_texts(steps(), []) == [[1, 2, 9, 5], [9, 3, 9, 5], [9, 9, 4, 5]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_token_of_probability_0_is_never_drawn(temperature: float) -> None:
    model = make_model("phi")
    with torch.no_grad():
        model.lm_head.bias[:90] = -torch.inf
    steps = draw_tokens(model, [np.array([1, 2])] * 4, [1, 2, 3, 4], temperature=temperature, top_p=1.0)
    assert min(token for tokens in islice(steps, 8) for token in tokens) >= 90
    assert continuation_scores(model, [1, 2], [[5, 95], [95]], 1.0)[0] == -math.inf
    with pytest.raises(ArchitectureError, match="probability 0"):
        check_architecture(model, "phi", 16)


@pytest.mark.parametrize(("value", "rows"), [(math.nan, slice(1)), (math.inf, slice(1)), (-math.inf, slice(None))])
def test_logits_that_are_no_distribution_are_refused(value: float, rows: slice) -> None:
    model = make_model("phi")
    with torch.no_grad():
        model.lm_head.bias[rows] = value
    with pytest.raises(BrokenStudentError):
        next(draw_tokens(model, [np.array([1, 2])], [1], temperature=1.0, top_p=1.0))
