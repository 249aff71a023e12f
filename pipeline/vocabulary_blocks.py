"""Rows over the vocabulary, looked at in blocks of neighbouring ids, so that few passes touch all of it.

Shape legend: C positions, V vocabulary, B blocks (the last one may be short), W ids in a block, K chosen ids.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

BLOCK_IDS = 64
# Blocks are made of smaller ones by this factor when few of their values are wanted.
_SMALLER = 8


def block_maxima(values_CV: Tensor, width: int = BLOCK_IDS) -> Tensor:
    """Largest value of every block of `width` ids [C, B]."""
    whole_CBW, rest_CW = _split(values_CV, width)
    maxima_CB = whole_CBW.amax(dim=2)
    return maxima_CB if rest_CW is None else torch.cat([maxima_CB, rest_CW.amax(dim=1, keepdim=True)], dim=1)


def block_sums(values_CV: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Sum of every block [C, B]."""
    whole_CBW, rest_CW = _split(values_CV, BLOCK_IDS)
    sums_CB = whole_CBW.sum(dim=2, dtype=dtype)
    if rest_CW is None:
        return sums_CB
    return torch.cat([sums_CB, rest_CW.sum(dim=1, keepdim=True, dtype=dtype)], dim=1)


def gather_blocks(values_CV: Tensor, blocks_CK: Tensor, fill: float, width: int = BLOCK_IDS) -> Tensor:
    """Values of the chosen blocks of `width` ids [C, K, W]; behind the last id stands `fill`."""
    whole_CBW, rest_CW = _split(values_CV, width)
    num_whole = whole_CBW.shape[1]
    rows_C1 = torch.arange(len(values_CV), device=values_CV.device)[:, None]
    if rest_CW is None:
        return whole_CBW[rows_C1, blocks_CK]
    last_C1W = functional.pad(rest_CW, (0, width - rest_CW.shape[1]), value=fill)[:, None]
    if num_whole == 0:
        return last_C1W.expand(-1, blocks_CK.shape[1], -1)
    found_CKW = whole_CBW[rows_C1, blocks_CK.clamp(max=num_whole - 1)]
    return torch.where((blocks_CK == num_whole)[:, :, None], last_C1W, found_CKW)


def largest(
    values_CV: Tensor, num: int, maxima_CB: Tensor | None = None, width: int = BLOCK_IDS
) -> tuple[Tensor, Tensor]:
    """The `num` largest values of every row, descending, and their ids [C, num]; equal values in any order.

    Whatever is among the `num` largest stands in one of the `num` blocks with the largest maxima; the same
    holds for smaller blocks inside of these. maxima_CB: `block_maxima`, where the caller has them.
    """
    if width == 1 or num * width >= values_CV.shape[1]:
        found = values_CV.topk(num, dim=1)
        return found.values, found.indices
    maxima_CB = block_maxima(values_CV, width) if maxima_CB is None else maxima_CB
    blocks_CK = maxima_CB.topk(num, dim=1, sorted=False).indices
    inside_CKW = gather_blocks(values_CV, blocks_CK, -torch.inf, width)
    found_CK, places_CK = largest(inside_CKW.flatten(1), num, width=width // _SMALLER)
    return found_CK, blocks_CK.gather(1, places_CK // width) * width + places_CK % width


def find_in_running_sum(
    weights_CV: Tensor, sums_CB: Tensor, thresholds_CK: Tensor, *, are_logs: bool = False
) -> Tensor:
    """Ids [C, K] at which the running sum of weights ≥ 0 first exceeds the float64 thresholds.

    sums_CB: float64 `block_sums` of the weights; are_logs: weights_CV holds their logarithms. A threshold
    beyond the total finds the last id that has weight.
    """
    running_CB = sums_CB.cumsum(dim=1)
    last_block_C1 = (running_CB < running_CB[:, -1:]).sum(dim=1, keepdim=True)
    blocks_CK = torch.searchsorted(running_CB, thresholds_CK, right=True).minimum(last_block_C1)
    before_CK = functional.pad(running_CB, (1, 0)).gather(1, blocks_CK)
    weights_CKW = gather_blocks(weights_CV, blocks_CK, -torch.inf if are_logs else 0.0)
    inside_CKW = (weights_CKW.exp() if are_logs else weights_CKW).cumsum(dim=2, dtype=torch.float64)
    place_CK1 = torch.searchsorted(inside_CKW, (thresholds_CK - before_CK)[:, :, None], right=True)
    # The block's sum and the sum over its ids differ by rounding; an id without weight is never found in between.
    last_CK1 = torch.searchsorted(inside_CKW, inside_CKW[:, :, -1:].contiguous())
    return blocks_CK * BLOCK_IDS + torch.minimum(place_CK1, last_CK1)[:, :, 0]


def _split(values_CV: Tensor, width: int) -> tuple[Tensor, Tensor | None]:
    num_whole = values_CV.shape[1] // width
    whole_CBW = values_CV[:, : num_whole * width].view(len(values_CV), num_whole, width)
    rest_CW = values_CV[:, num_whole * width :]
    return whole_CBW, rest_CW if rest_CW.shape[1] else None
