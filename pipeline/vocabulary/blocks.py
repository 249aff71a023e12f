"""Rows over the vocabulary, looked at in blocks of neighbouring ids, so that few passes touch all of it.

Shape legend: C positions, V vocabulary, B blocks (the last one may be short), W ids in a block, K chosen ids.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

BLOCK_IDS = 64
_FOLD = 8


def num_blocks(vocab_size: int) -> int:
    """Blocks of a row, B."""
    return -(-vocab_size // BLOCK_IDS)


def split_blocks(values_CV: Tensor) -> tuple[Tensor, Tensor | None]:
    """Views of the whole blocks [C, B, W] and of the short last one [C, V mod W], None where there is none."""
    num_whole = values_CV.shape[1] // BLOCK_IDS
    whole_CBW = values_CV[:, : num_whole * BLOCK_IDS].view(len(values_CV), num_whole, BLOCK_IDS)
    rest_CW = values_CV[:, num_whole * BLOCK_IDS :]
    return whole_CBW, rest_CW if rest_CW.shape[1] else None


def block_maxima(values_CV: Tensor) -> Tensor:
    """Largest value of every block [C, B]."""
    whole_CBW, rest_CW = split_blocks(values_CV)
    maxima_CB = whole_CBW.amax(dim=2)
    return maxima_CB if rest_CW is None else torch.cat([maxima_CB, rest_CW.amax(dim=1, keepdim=True)], dim=1)


def block_sums(values_CV: Tensor) -> Tensor:
    """Sum of every block [C, B] in float64."""
    whole_CBW, rest_CW = split_blocks(values_CV)
    sums_CB = whole_CBW.sum(dim=2, dtype=torch.float64)
    if rest_CW is None:
        return sums_CB
    return torch.cat([sums_CB, rest_CW.sum(dim=1, keepdim=True, dtype=torch.float64)], dim=1)


def gather_blocks(values_CV: Tensor, blocks_CK: Tensor, fill: float) -> tuple[Tensor, Tensor]:
    """Values of the chosen blocks [C, K, W] and the id of the first of each [C, K]; W is V where V is less.

    A short last block is preceded by `fill`, so that its last id is that of the vocabulary.
    """
    num_rows, vocab_size = values_CV.shape
    width = min(BLOCK_IDS, vocab_size)
    first_ids_CK = (blocks_CK * BLOCK_IDS).clamp(max=vocab_size - width)
    # Whole rows of windows that overlap are copied ten times as fast as single values.
    windows_XW = values_CV.contiguous().as_strided((values_CV.numel() - width + 1, width), (1, 1))
    row_starts_C1 = torch.arange(0, values_CV.numel(), vocab_size, device=values_CV.device)[:, None]
    values_CKW = windows_XW.index_select(0, (row_starts_C1 + first_ids_CK).flatten()).view(num_rows, -1, width)
    num_missing = -vocab_size % width
    if num_missing:
        rows, places = (blocks_CK == vocab_size // BLOCK_IDS).nonzero(as_tuple=True)
        values_CKW[rows, places, :num_missing] = fill
    return values_CKW, first_ids_CK


def largest(values_CV: Tensor, num: int, maxima_CB: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The `num` largest values of every row, descending, and their ids [C, num]; equal values in any order.

    Whatever is among the `num` largest stands in one of the `num` blocks with the largest maxima.
    maxima_CB: `block_maxima`, where the caller has them.
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
    """As `largest`, with groups of values that stand N / 8 apart for blocks."""
    num_groups = values_CN.shape[1] // _FOLD
    groups_CK = values_CN.view(-1, _FOLD, num_groups).amax(dim=1).topk(num, dim=1, sorted=False).indices
    steps_F1 = torch.arange(_FOLD, device=values_CN.device)[:, None] * num_groups
    places_CN = (groups_CK[:, None] + steps_F1).flatten(1)
    found = values_CN.gather(1, places_CN).topk(num, dim=1)
    return found.values, places_CN.gather(1, found.indices)


def find_in_running_sum(
    weights_CV: Tensor, sums_CB: Tensor, thresholds_CK: Tensor, *, are_logs: bool = False
) -> Tensor:
    """Ids [C, K] at which the running sum of weights ≥ 0 first exceeds the float64 thresholds.

    sums_CB: sums of the weights' blocks. Their float64 running sum says which block a threshold falls into; inside it
    the weights share the block's sum in proportion, so that rounding of that sum moves intervals, but changes their
    width by its own relative error only. are_logs: weights_CV holds logarithms. A threshold beyond the total finds
    the last id that has weight.
    """
    running_CB = sums_CB.cumsum(dim=1, dtype=torch.float64)
    last_block_C1 = (running_CB < running_CB[:, -1:]).sum(dim=1, keepdim=True)
    blocks_CK = torch.searchsorted(running_CB, thresholds_CK, right=True).minimum(last_block_C1)
    before_CK = functional.pad(running_CB, (1, 0)).gather(1, blocks_CK)
    weights_CKW, first_ids_CK = gather_blocks(weights_CV, blocks_CK, -torch.inf if are_logs else 0.0)
    inside_CKW = (weights_CKW.exp() if are_logs else weights_CKW).cumsum(dim=2, dtype=torch.float64)
    within_CK = (thresholds_CK - before_CK) * (inside_CKW[:, :, -1] / sums_CB.gather(1, blocks_CK))
    place_CK = torch.searchsorted(inside_CKW, within_CK[:, :, None], right=True)[:, :, 0]
    # The block's sum and the sum over its ids differ by rounding; an id without weight is never found in between.
    # Counted rather than searched for: NaN weights, which others refuse, find an id that exists.
    last_CK = (inside_CKW < inside_CKW[:, :, -1:]).sum(dim=2)
    return first_ids_CK + torch.minimum(place_CK, last_CK)
