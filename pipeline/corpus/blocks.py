"""Cut a token store into blocks of T + 1 tokens, and take prompts from documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.token_store import TokenStore


class Blocks:
    """Consecutive blocks of `block_size` + 1 tokens. A remainder that is shorter than a block is left out."""

    def __init__(self, store: TokenStore, block_size: int) -> None:
        self._store, self._block_tokens = store, block_size + 1

    def __len__(self) -> int:
        return self._store.num_tokens // self._block_tokens

    def input_ids(self, start: int, stop: int) -> NDArray[Any]:
        """Return the tokens of blocks [start, stop) as an array [stop - start, T + 1]."""
        flat = self._store.tokens[start * self._block_tokens : stop * self._block_tokens]
        return np.asarray(flat).reshape(-1, self._block_tokens)

    @property
    def marks_wanted(self) -> bool:
        """Whether the text says of each token whether it is wanted, so that rows have the column is_wanted."""
        return self._store.is_wanted is not None

    def is_wanted(self, start: int, stop: int) -> NDArray[np.bool_] | None:
        """Return whether the label of each target in blocks [start, stop) is wanted: [stop - start, T].

        The label of target t is token t + 1. Return None when every target is wanted.
        """
        if self._store.is_wanted is None:
            return None
        flat = self._store.is_wanted[start * self._block_tokens : stop * self._block_tokens]
        return np.asarray(flat).reshape(-1, self._block_tokens)[:, 1:]

    def segment_lengths(self, index: int) -> NDArray[np.int64]:
        """Return the lengths of the pieces of documents in a block."""
        start = index * self._block_tokens
        return self._store.segment_lengths(start, start + self._block_tokens)


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts of one split: the prompt_id and the token ids (prompt_ids) of each."""

    prompt_id: list[int]
    prompt_ids: list[NDArray[Any]]

    def __len__(self) -> int:
        return len(self.prompt_id)


def prompts_from_blocks(blocks: Blocks, num_prompts: int, prompt_tokens: int) -> PromptSet:
    """Return prompts from evenly spread blocks. A prompt's prompt_id is the row_id of its block.

    Divide the blocks into num_prompts ranges and take at most one prompt from each. The prompt is the first
    prompt_tokens tokens of a piece of a document, so it never spans two documents. The piece is longer than the prompt,
    so there is text to continue. Blocks without such a piece give no prompt.
    """
    chosen: list[int] = []
    prompt_ids: list[NDArray[Any]] = []
    num_prompts = min(num_prompts, len(blocks))
    for i in range(num_prompts):
        for block in range(i * len(blocks) // num_prompts, (i + 1) * len(blocks) // num_prompts):
            start = _first_long_segment(blocks.segment_lengths(block), prompt_tokens)
            if start is not None:
                chosen.append(block)
                prompt_ids.append(blocks.input_ids(block, block + 1)[0, start : start + prompt_tokens])
                break
    return PromptSet(prompt_id=chosen, prompt_ids=prompt_ids)


def prompts_from_column(store: TokenStore, num_prompts: int) -> PromptSet:
    """Return the first num_prompts prompts of a column. prompt_id counts them from 0."""
    count = min(num_prompts, len(store.ends))
    return PromptSet(prompt_id=list(range(count)), prompt_ids=[store.document(i) for i in range(count)])


def _first_long_segment(segment_lengths: NDArray[np.int64], prompt_tokens: int) -> int | None:
    starts = np.cumsum(segment_lengths) - segment_lengths
    long_enough = np.flatnonzero(segment_lengths > prompt_tokens)
    return int(starts[long_enough[0]]) if len(long_enough) else None
