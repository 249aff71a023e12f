"""Documents packed into a block: the one rule for positions, isolation and valid targets.

A block of T + 1 tokens is cut into segments, each a piece of one document. A token sees only its own
segment, positions start again at 0 in each, and target t (which predicts token t + 1) is valid only
when tokens t and t + 1 lie in the same segment. Masks come from these lengths, never from token ids.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]


def segment_indices(segment_lengths: Int64s) -> Int64s:
    """Index of each token's segment: [sum of lengths]."""
    return np.repeat(np.arange(len(segment_lengths)), segment_lengths)


def position_ids(segment_lengths: Int64s) -> Int64s:
    """Position of each token inside its segment: [sum of lengths]."""
    starts = np.cumsum(segment_lengths) - segment_lengths
    return np.arange(segment_lengths.sum()) - np.repeat(starts, segment_lengths)


def valid_targets(segment_lengths: Int64s) -> NDArray[np.bool_]:
    """Whether target t predicts a token of its own segment: [sum of lengths - 1]."""
    positions = position_ids(segment_lengths)
    return positions[1:] > 0
