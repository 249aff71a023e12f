"""Documents packed into blocks, as a model sees them: each document only itself.

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
    """Last hidden states [N, T, D] of a model's body; a document begins where positions start again at 0.

    transformers keeps documents apart by their positions where it is given neither a mask nor a cache.
    """
    output = body(input_ids=input_ids_NT, position_ids=position_ids_NT, attention_mask=None, use_cache=False)
    hidden: Tensor = output.last_hidden_state
    return hidden


def packing_leak(
    hidden_of: Callable[[NDArray[np.int64], list[NDArray[np.int64]]], Tensor], *, vocab_size: int, context_length: int
) -> float:
    """How far a document's hidden states move when another one stands before it, as relative_difference.

    Rounding alone moves them where documents are kept apart. hidden_of: hidden states [N, T, D] of token ids [N, T],
    given the lengths of each block's documents in tokens.
    """
    length = min(_PROBE_TOKENS, context_length // 2)
    alone = (np.arange(length)[None] * 7 + 1) % vocab_size
    packed = np.concatenate([(np.arange(length)[None] * 5 + 3) % vocab_size, alone], axis=1)
    expected = hidden_of(alone, [np.array([length])])[0]
    found = hidden_of(packed, [np.array([length, length])])[0, length:]
    return relative_difference(found, expected)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """max |found − expected| / max(1, max |expected|), in float32; NaN where either holds NaN."""
    found, expected = found.float(), expected.float()
    scale = max(float(expected.abs().max()), 1.0)
    return float((found - expected).abs().max()) / scale
