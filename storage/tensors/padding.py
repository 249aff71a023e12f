"""Make one batch from prompts of several lengths: keep each distinct prompt once, and pad on the left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def distinct_prompts(prompts: Sequence[NDArray[Any]]) -> tuple[list[NDArray[Any]], NDArray[np.int64]]:
    """Return the U distinct prompts in order of first occurrence, and each prompt's index among them: [N]."""
    numbers: dict[bytes, int] = {}
    rows = np.array([numbers.setdefault(prompt.tobytes(), len(numbers)) for prompt in prompts])
    return [prompts[i] for i in np.unique(rows, return_index=True)[1]], rows


def left_pad(prompts: Sequence[NDArray[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return two int64 arrays [N, longest]: ids, padded with zeros on the left, and 1 for a token, 0 for padding."""
    longest = max(len(prompt) for prompt in prompts)
    ids = np.zeros((len(prompts), longest), dtype=np.int64)
    is_token = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        is_token[row, longest - len(prompt) :] = 1
    return ids, is_token


def padded_positions(mask_NL: Tensor) -> Tensor:
    """Return positions [N, L] that count tokens from 0, without the padding on the left.

    mask_NL: 1 for a token, 0 for padding. Padding has position 0.
    """
    return (mask_NL.cumsum(1) - 1).clamp(min=0)
