"""Rows over the vocabulary, looked at in blocks of neighbouring ids, so that few passes touch all of it.

Shape legend: C positions, V vocabulary, B blocks (the last one may be short), W ids in a block, K chosen ids.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

BLOCK_IDS = 64


def block_maxima(values_CV: Tensor) -> Tensor:
    """Largest value of every block [C, B]."""
    whole_CBW, rest_CW = _split(values_CV)
    maxima_CB = whole_CBW.amax(dim=2)
    return maxima_CB if rest_CW is None else torch.cat([maxima_CB, rest_CW.amax(dim=1, keepdim=True)], dim=1)


def block_sums(values_CV: Tensor) -> Tensor:
    """Float64 sum of every block [C, B]."""
    whole_CBW, rest_CW = _split(values_CV)
    sums_CB = whole_CBW.sum(dim=2, dtype=torch.float64)
    if rest_CW is None:
        return sums_CB
    return torch.cat([sums_CB, rest_CW.sum(dim=1, keepdim=True, dtype=torch.float64)], dim=1)


def gather_blocks(values_CV: Tensor, blocks_CK: Tensor, fill: float) -> tuple[Tensor, Tensor]:
    """Values and ids of the chosen blocks [C, K, W]; behind the last id stand `fill` and an id out of range."""
    ids_CKW = blocks_CK[:, :, None] * BLOCK_IDS + torch.arange(BLOCK_IDS, device=values_CV.device)
    vocab_size = values_CV.shape[1]
    flat = ids_CKW.flatten(1).clamp(max=vocab_size - 1)
    values_CKW = values_CV.gather(1, flat).view(ids_CKW.shape)
    return values_CKW.masked_fill(ids_CKW >= vocab_size, fill), ids_CKW


def largest(values_CV: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The `num` largest values of every row, descending, and their ids [C, num]; equal values in any order.

    Whatever is among the `num` largest stands in one of the `num` blocks with the largest maxima.
    """
    vocab_size = values_CV.shape[1]
    if num * BLOCK_IDS >= vocab_size:
        found = values_CV.topk(num, dim=1)
        return found.values, found.indices
    blocks_CK = block_maxima(values_CV).topk(num, dim=1).indices
    values_CKW, ids_CKW = gather_blocks(values_CV, blocks_CK, -torch.inf)
    found = values_CKW.flatten(1).topk(num, dim=1)
    return found.values, ids_CKW.flatten(1).gather(1, found.indices)


def find_in_running_sum(weights_CV: Tensor, sums_CB: Tensor, thresholds_CK: Tensor) -> Tensor:
    """Ids [C, K] at which the running sum of weights ≥ 0 first exceeds the float64 thresholds.

    sums_CB: `block_sums` of the weights. A threshold beyond the total finds the last id that has weight.
    """
    running_CB = sums_CB.cumsum(dim=1)
    last_block_C1 = (running_CB < running_CB[:, -1:]).sum(dim=1, keepdim=True)
    blocks_CK = torch.searchsorted(running_CB, thresholds_CK, right=True).minimum(last_block_C1)
    before_CK = functional.pad(running_CB, (1, 0)).gather(1, blocks_CK)
    weights_CKW, ids_CKW = gather_blocks(weights_CV, blocks_CK, 0.0)
    inside_CKW = weights_CKW.double().cumsum(dim=2)
    place_CK = (inside_CKW <= (thresholds_CK - before_CK)[:, :, None]).sum(dim=2)
    # The block's sum and the sum over its ids differ by rounding; an id without weight is never found in between.
    last_CK = (inside_CKW < inside_CKW[:, :, -1:]).sum(dim=2)
    return ids_CKW.gather(2, torch.minimum(place_CK, last_CK)[:, :, None])[:, :, 0]


def _split(values_CV: Tensor) -> tuple[Tensor, Tensor | None]:
    num_whole = values_CV.shape[1] // BLOCK_IDS
    whole_CBW = values_CV[:, : num_whole * BLOCK_IDS].view(len(values_CV), num_whole, BLOCK_IDS)
    rest_CW = values_CV[:, num_whole * BLOCK_IDS :]
    return whole_CBW, rest_CW if rest_CW.shape[1] else None
