"""What a model says of one text alone, without packing, padding or a key-value cache, in float64.

Shape legend: T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Truth:
    """A float64 copy of a model. Where the model's own code cannot run in float64, a float32 copy."""

    def __init__(self, model: Any) -> None:
        self.model = copy.deepcopy(model).double()
        # The default product over experts knows no float64.
        self.model.set_experts_implementation("eager")
        try:
            self.logits([0, 1])
        except RuntimeError:
            self.model = copy.deepcopy(model).float()

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Return the logits [T, V] after each token, float64, with their gradient."""
        output = self.model(input_ids=torch.tensor([list(map(int, ids))]), use_cache=False)
        logits: Tensor = output.logits[0].double()
        return logits

    def logprobs(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """Return the log-probabilities [T, V] after each token, in nats."""
        with torch.no_grad():
            found: NDArray[np.float64] = torch.log_softmax(self.logits(ids), dim=1).numpy()
        return found

    def continued(self, prompt: Any, continuation: Any) -> NDArray[np.float64]:
        """Return the log-probability of each token of a continuation in the whole text."""
        rows = self.logprobs([*prompt, *continuation])[len(prompt) - 1 : -1]
        return rows[np.arange(len(continuation)), np.asarray(continuation, dtype=np.int64)]

    def drawn(self, prompt: Any, continuation: Any) -> NDArray[np.float64]:
        """Return the log-probability of each token in the text before it, which is what a draw is made from.

        It differs from that in the whole text for models whose function depends on the text's length.
        """
        ids = [*prompt, *continuation]
        return np.array([self.logprobs(ids[:stop])[-1, ids[stop]] for stop in range(len(prompt), len(ids))])

    def greedy(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """Return the most probable next tokens, one whole pass each."""
        ids = list(map(int, prompt))
        for _ in range(num_tokens):
            ids.append(int(self.logprobs(ids)[-1].argmax()))
        return ids[len(prompt) :]


def documents(row: dict[str, Any]) -> Iterator[tuple[int, list[int], list[int]]]:
    """Yield of each document of a row of soft targets its place in the block, the ids that are read, and its labels.

    The last token of a block is only a label.
    """
    start, read = 0, row["input_ids"][:-1]
    for length in row["segment_lengths"]:
        if length > 1:
            yield start, read[start : start + length], row["input_ids"][start + 1 : start + length]
        start += length


def entries(row: dict[str, Any]) -> list[tuple[list[int], NDArray[np.float64], list[int]]]:
    """Return for each target of a row its head's ids, their log-probabilities, and the ids of its tail."""
    ids, logprobs = iter(row["ids"]), iter(row["logprobs"])
    found = []
    for head_size, tail_size in zip(row["head_size"], row["tail_size"], strict=True):
        head = [next(ids) for _ in range(head_size)]
        found.append((head, np.array([next(logprobs) for _ in head]), [next(ids) for _ in range(tail_size)]))
    return found
