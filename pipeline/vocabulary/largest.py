"""Find the largest values of each row over the vocabulary without sorting the row.

Shape legend: C positions, V vocabulary, B blocks of neighbouring ids, W ids in a block, K chosen ids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from storage.tensors.vocabulary_blocks import BLOCK_IDS, gather_blocks, split_blocks

_FOLD = 8


def block_maxima(values_CV: Tensor) -> Tensor:
    """Return the largest value of every block [C, B]."""
    whole_CBW, rest_CW = split_blocks(values_CV)
    maxima_CB = whole_CBW.amax(dim=2)
    return maxima_CB if rest_CW is None else torch.cat([maxima_CB, rest_CW.amax(dim=1, keepdim=True)], dim=1)


def largest(values_CV: Tensor, num: int, maxima_CB: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the `num` largest values of every row, descending, and their ids [C, num]. Ties come in any order.

    The `num` largest values are in the `num` blocks with the largest maxima. maxima_CB: `block_maxima` of the values;
    None computes them here.
    """
    if num * BLOCK_IDS >= values_CV.shape[1]:
        found = values_CV.topk(num, dim=1)
        return found.values, found.indices
    maxima_CB = block_maxima(values_CV) if maxima_CB is None else maxima_CB
    blocks_CK = maxima_CB.topk(num, dim=1, sorted=False).indices
    inside_CKW, first_ids_CK = gather_blocks(values_CV, blocks_CK, -torch.inf)
    values_CK, places_CK = _largest_of_few(inside_CKW.flatten(1), num)
    return values_CK, first_ids_CK.gather(1, places_CK // BLOCK_IDS) + places_CK % BLOCK_IDS


def _largest_of_few(values_CN: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Do the same as `largest` with groups of 8 values, N / 8 places apart, in place of blocks."""
    num_groups = values_CN.shape[1] // _FOLD
    groups_CK = values_CN.view(-1, _FOLD, num_groups).amax(dim=1).topk(num, dim=1, sorted=False).indices
    steps_F1 = torch.arange(_FOLD, device=values_CN.device)[:, None] * num_groups
    places_CN = (groups_CK[:, None] + steps_F1).flatten(1)
    found = values_CN.gather(1, places_CN).topk(num, dim=1)
    return found.values, places_CN.gather(1, found.indices)
