"""Documents packed into a block: positions, isolation and valid targets follow from the segment lengths.

A block of T + 1 tokens consists of segments, each a piece of one document. A token attends only to its own segment.
Positions start again at 0 in each segment. Target t, which predicts token t + 1, is valid only when tokens t and t + 1
lie in the same segment. Where rows have the column is_wanted, it must also be wanted. Derive masks from the segment
lengths, never from token ids.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]


def position_ids(segment_lengths: Int64s) -> Int64s:
    """Return the position of each token inside its segment: [sum of lengths]."""
    starts = np.cumsum(segment_lengths) - segment_lengths
    return np.arange(segment_lengths.sum()) - np.repeat(starts, segment_lengths)


def continues_segment(segment_lengths: Int64s) -> NDArray[np.bool_]:
    """Return whether each token lies in the same segment as the token before it: [sum of lengths]."""
    # The last place takes the beginnings of empty segments at the end.
    continues = np.ones(segment_lengths.sum() + 1, dtype=np.bool_)
    continues[np.cumsum(segment_lengths) - segment_lengths] = False
    return continues[:-1]


def valid_targets(segment_lengths: Int64s) -> NDArray[np.bool_]:
    """Return whether tokens t and t + 1 lie in the same segment, for each target t: [sum of lengths - 1]."""
    return continues_segment(segment_lengths)[1:]
