"""Find an id by the running sum of its row's weights. This turns a uniform number into a draw.

Shape legend: C positions, V vocabulary, B blocks of neighbouring ids, W ids in a block, K thresholds.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from storage.tensors.vocabulary_blocks import gather_blocks


def find_in_running_sum(
    weights_CV: Tensor, sums_CB: Tensor, thresholds_CK: Tensor, *, are_logs: bool = False
) -> Tensor:
    """Return the ids [C, K] at which the running sum of weights ≥ 0 first exceeds the thresholds.

    A threshold beyond the total finds the last id that has weight.

    weights_CV: the weights; with are_logs, their logarithms. sums_CB: sum of the weights in each block.
    thresholds_CK: float64.

    The float64 running sum of sums_CB determines the block that a threshold falls into. Inside the block, the weights
    share the block's sum in proportion. So a rounding error of that sum moves the intervals of ids, but changes their
    width only by its relative error.
    """
    running_CB = sums_CB.cumsum(dim=1, dtype=torch.float64)
    last_block_C1 = (running_CB < running_CB[:, -1:]).sum(dim=1, keepdim=True)
    blocks_CK = torch.searchsorted(running_CB, thresholds_CK, right=True).minimum(last_block_C1)
    before_CK = functional.pad(running_CB, (1, 0)).gather(1, blocks_CK)
    weights_CKW, first_ids_CK = gather_blocks(weights_CV, blocks_CK, -torch.inf if are_logs else 0.0)
    inside_CKW = (weights_CKW.exp() if are_logs else weights_CKW).cumsum(dim=2, dtype=torch.float64)
    within_CK = (thresholds_CK - before_CK) * (inside_CKW[:, :, -1] / sums_CB.gather(1, blocks_CK))
    place_CK = torch.searchsorted(inside_CKW, within_CK[:, :, None], right=True)[:, :, 0]
    # The block's sum and the sum over its ids differ by rounding. Limit the place to the last id with weight, so that
    # the difference never finds an id without weight. Find that last id by counting, not by searching: then NaN
    # weights, which other code refuses, give an id that exists.
    last_CK = (inside_CKW < inside_CKW[:, :, -1:]).sum(dim=2)
    return first_ids_CK + torch.minimum(place_CK, last_CK)
