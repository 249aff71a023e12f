"""Prompts of several lengths as one batch."""

from __future__ import annotations

import numpy as np

from storage.tensors.padding import distinct_prompts, left_pad


def test_shorter_prompts_end_where_the_longest_ends() -> None:
    ids, is_token = left_pad([np.array([5]), np.array([0, 7, 8]), np.array([9, 0], dtype=np.uint16)])
    assert ids.tolist() == [[0, 0, 5], [0, 7, 8], [0, 9, 0]]
    assert is_token.tolist() == [[0, 0, 1], [1, 1, 1], [0, 1, 1]]
    assert ids.dtype == is_token.dtype == np.int64


def test_a_prompt_that_comes_again_is_one_of_those_before() -> None:
    prompts = [np.array(ids) for ids in ([3, 1], [1, 3], [3, 1], [3], [1, 3])]
    distinct, rows = distinct_prompts(prompts)
    assert [prompt.tolist() for prompt in distinct] == [[3, 1], [1, 3], [3]]
    assert rows.tolist() == [0, 1, 0, 2, 1]
