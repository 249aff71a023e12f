"""One text of a source with its targets: as it was read, and once it is checked.

Shape legend: L tokens of the text, T = L − 1 targets, of which target t is about token t + 1, E entries.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class SourceText:
    """A text as its source states it, whether right or not.

    where: file and row, for messages. first_position: where the source's lists have target 0.
    input_ids [L]. size [T]: entries of each target. ids, logprobs [E]: target by target, in any order, in nats.
    is_wanted [T]: whether the target is to be taught. label_logprob [T]: the log-probability that the source states for
    token t + 1 beside the entries, NaN where it states none.
    lists_labels: whether the source lists each label among the entries, so that a missing one shows a shifted list.
    """

    where: str
    first_position: int
    input_ids: Int64s
    size: Int64s
    ids: Int64s
    logprobs: Floats
    is_wanted: Bools
    label_logprob: Floats
    lists_labels: bool

    @functools.cached_property
    def target_of_entry(self) -> Int64s:
        """The target of each entry: [E]."""
        return np.repeat(np.arange(len(self.size)), self.size)


@dataclass(frozen=True, kw_only=True)
class CheckedText:
    """A text whose targets may be stored.

    input_ids [L]; is_wanted [T]; size [T], 0 where nothing is wanted; ids [E], ascending in each target; logprobs [E],
    tail_logprob [T] and label_logprob [T] in nats, 0 where nothing is wanted. label_logprob is NaN where it is not
    known. num_scaled: targets whose mass exceeded 1 by rounding.
    """

    input_ids: Int64s
    is_wanted: Bools
    size: Int64s
    ids: Int64s
    logprobs: Floats
    tail_logprob: Floats
    label_logprob: Floats
    num_scaled: int

    @property
    def has_target(self) -> bool:
        """Whether there is anything to learn."""
        return bool(self.is_wanted.any())


def joined(arrays: list[Any], dtype: Any) -> NDArray[Any]:
    """Concatenate arrays or lists, perhaps none, as `dtype`."""
    return np.concatenate([np.empty(0, dtype), *(np.asarray(array, dtype=dtype) for array in arrays)])
