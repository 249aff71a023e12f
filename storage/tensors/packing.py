"""Run a model on documents that are packed into blocks, and check that each document sees only itself.

Shape legend: N blocks, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_PROBE_TOKENS = 6


def packed_hidden_states(body: Any, input_ids_NT: Tensor, position_ids_NT: Tensor) -> Tensor:
    """Return the last hidden states [N, T, D] of a model's body. A document begins at each position id 0.

    transformers separates documents by their position ids when it gets neither an attention mask nor a key-value cache.
    """
    output = body(input_ids=input_ids_NT, position_ids=position_ids_NT, attention_mask=None, use_cache=False)
    hidden: Tensor = output.last_hidden_state
    return hidden


def packing_leak(
    hidden_of: Callable[[NDArray[np.int64], list[NDArray[np.int64]]], Tensor], *, vocab_size: int, context_length: int
) -> float:
    """Return how much a document's hidden states change when another one precedes it, as a relative_difference.

    If documents are separated, only rounding changes them. hidden_of(ids, lengths) returns the hidden states [N, T, D]
    of token ids [N, T]; lengths holds, for each block, the lengths of its documents in tokens.
    """
    length = min(_PROBE_TOKENS, context_length // 2)
    alone = (np.arange(length)[None] * 7 + 1) % vocab_size
    packed = np.concatenate([(np.arange(length)[None] * 5 + 3) % vocab_size, alone], axis=1)
    expected = hidden_of(alone, [np.array([length])])[0]
    found = hidden_of(packed, [np.array([length, length])])[0, length:]
    return relative_difference(found, expected)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Return max |found − expected| / max(1, max |expected|), computed in float32; NaN when either holds NaN."""
    found, expected = found.float(), expected.float()
    scale = max(float(expected.abs().max()), 1.0)
    return float((found - expected).abs().max()) / scale
