"""Run prompts through the teacher before the first new token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.decoding.slot_cache import prefill_cache
from pipeline.teacher.model import Teacher
from storage.tensors.padding import distinct_prompts, left_pad, padded_positions


@dataclass(frozen=True, kw_only=True)
class Prefilled:
    """N prompts after one pass of the teacher over the U distinct ones.

    cache: keys and values of the distinct prompts, left-padded. hidden_UD: their last hidden states. rows [N]: index of
    each prompt among the distinct ones. lengths [N]: tokens of each prompt.
    """

    cache: Any
    hidden_UD: Tensor
    rows: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @property
    def first_of_distinct(self) -> NDArray[np.int64]:
        """Index of the first prompt that equals each distinct one [U]."""
        return np.unique(self.rows, return_index=True)[1]


def prefill(teacher: Teacher, prompts: list[NDArray[Any]]) -> Prefilled:
    """Run prompts of any lengths in one pass. Similar lengths need little padding."""
    distinct, rows = distinct_prompts(prompts)
    ids_UT, is_token_UT = left_pad(distinct)
    mask_UT = teacher.to_device(is_token_UT)
    cache = prefill_cache()
    hidden_UD = teacher.last_hidden(teacher.to_device(ids_UT), mask_UT, padded_positions(mask_UT), cache)
    return Prefilled(cache=cache, hidden_UD=hidden_UD, rows=rows, lengths=np.array([len(ids) for ids in prompts]))
