"""Run a model on documents that are packed into blocks, each as if it stood alone.

Attention that reads position ids separates the documents of a block by itself. Recurrent models and those that count
places along the row do not: their documents run as rows of their own, and the hidden states go back to the blocks.

Shape legend: N blocks, T positions, R rows of one pass, L positions of a row, P tokens of all documents, D width.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# transformers separates the packed documents of a row by a mask of T × T. Documents of longer rows run as rows of their
# own, which need no mask: causal attention without one takes memory in proportion to T.
LONGEST_MASKED = 2048
# A row of a pass is at least this share of the longest one: little padding, and few passes.
_SHORTEST_SHARE = 0.75


class Isolation(enum.Enum):
    """How a model runs so that no document of a block changes another's numbers.

    PACKED: whole blocks with position ids; those of more than LONGEST_MASKED tokens may run as ROWS. ROWS: a document a
    row, padded on the right, which a causal model does not see. EQUAL_ROWS: a document a row, with rows of one length
    in a pass, for models whose function depends on the longest row (longrope and dynamic rotary scaling).
    """

    PACKED = "packed"
    ROWS = "rows"
    EQUAL_ROWS = "equal_rows"


def isolated_hidden_states(
    body: Any,
    input_ids_NT: Tensor,
    position_ids_NT: Tensor,
    isolation: Isolation,
    *,
    shortest_share: float | None = None,
    is_one_pass: bool = False,
) -> Tensor:
    """Return the last hidden states [N, T, D] of a model's body, with gradient.

    A document begins at each position id 0 and ends before the next, or before padding, whose position id is −1 and
    which may end a block. Hidden states of padding have no meaning. A pass over rows holds at most N · T tokens.

    shortest_share: the least length of a row as a share of the longest in its pass; None for that of `isolation`.
    is_one_pass: run PACKED blocks of any length in one pass, in which a mask may take N · T² bytes and more.
    """
    if isolation is Isolation.PACKED and (is_one_pass or not _needs_large_mask(position_ids_NT)):
        return _packed(body, input_ids_NT, position_ids_NT)
    if shortest_share is None:
        shortest_share = 1.0 if isolation is Isolation.EQUAL_ROWS else _SHORTEST_SHARE
    return _in_rows(body, input_ids_NT, position_ids_NT.cpu().numpy().ravel(), shortest_share)


def _needs_large_mask(position_ids_NT: Tensor) -> bool:
    return position_ids_NT.shape[1] > LONGEST_MASKED and bool((position_ids_NT[:, 1:] == 0).any())


def _packed(body: Any, input_ids_NT: Tensor, position_ids_NT: Tensor) -> Tensor:
    """transformers separates documents by position ids when it gets neither an attention mask nor a key-value cache.

    Padding continues the positions of the document before it, so that a padded text is not two documents.
    """
    places_T = torch.arange(input_ids_NT.shape[1], device=position_ids_NT.device)
    positions_NT = torch.where(position_ids_NT < 0, places_T, position_ids_NT)
    output = body(input_ids=input_ids_NT, position_ids=positions_NT, attention_mask=None, use_cache=False)
    hidden: Tensor = output.last_hidden_state
    return hidden


def _in_rows(body: Any, input_ids_NT: Tensor, positions: NDArray[np.int64], shortest_share: float) -> Tensor:
    flat_ids = input_ids_NT.flatten()
    places, parts = [], []
    for places_RL, is_token_RL in _passes(positions, shortest_share):
        hidden_RLD = body(input_ids=flat_ids[_on(flat_ids, places_RL)], use_cache=False).last_hidden_state
        places.append(places_RL[is_token_RL])
        parts.append(hidden_RLD.flatten(0, 1)[_on(flat_ids, np.flatnonzero(is_token_RL))])
    hidden_PD = torch.cat(parts)
    index = np.zeros(len(positions), dtype=np.int64)
    index[np.concatenate(places)] = np.arange(len(hidden_PD))
    return hidden_PD[_on(flat_ids, index)].view(*input_ids_NT.shape, -1)


def _passes(
    positions: NDArray[np.int64], shortest_share: float
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Yield the rows of each pass: places of their tokens in the flattened blocks, and what is no padding, [R, L]."""
    starts = np.flatnonzero(positions == 0)
    document = np.cumsum(positions == 0) - 1
    lengths = np.bincount(document[positions >= 0], minlength=len(starts))
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        longest = int(lengths[order[0]])
        may_join = lengths[order] >= shortest_share * longest
        rows = order[: min(int(may_join.sum()), max(1, len(positions) // longest))]
        order = order[len(rows) :]
        offsets_L = np.arange(longest)
        is_token_RL = offsets_L < lengths[rows, None]
        yield starts[rows, None] + np.where(is_token_RL, offsets_L, 0), is_token_RL


def _on(like: Tensor, indices: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(indices).to(like.device)
