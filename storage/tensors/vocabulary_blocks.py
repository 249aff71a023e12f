"""Divide rows over the vocabulary into blocks of neighbouring ids, so that few passes read the whole row.

Shape legend: C positions, V vocabulary, B blocks (the last one may be short), W ids in a block, K chosen blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_IDS = 64


def num_blocks(vocab_size: int) -> int:
    """Return the number of blocks in a row, B."""
    return -(-vocab_size // BLOCK_IDS)


def split_blocks(values_CV: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return views of the whole blocks [C, V // W, W] and of the short last block [C, V mod W], or None."""
    num_whole = values_CV.shape[1] // BLOCK_IDS
    whole_CBW = values_CV[:, : num_whole * BLOCK_IDS].view(len(values_CV), num_whole, BLOCK_IDS)
    rest_CW = values_CV[:, num_whole * BLOCK_IDS :]
    return whole_CBW, rest_CW if rest_CW.shape[1] else None


def block_sums(values_CV: Tensor) -> Tensor:
    """Return the sum of each block: float64 [C, B]."""
    whole_CBW, rest_CW = split_blocks(values_CV)
    sums_CB = whole_CBW.sum(dim=2, dtype=torch.float64)
    if rest_CW is None:
        return sums_CB
    return torch.cat([sums_CB, rest_CW.sum(dim=1, keepdim=True, dtype=torch.float64)], dim=1)


def gather_blocks(values_CV: Tensor, blocks_CK: Tensor, fill: float) -> tuple[Tensor, Tensor]:
    """Return the values of the chosen blocks [C, K, W] and the id of the first value of each [C, K].

    W is BLOCK_IDS, or V if V is less. A short last block is padded with `fill` at the front, so that its last value is
    that of the last id of the vocabulary.
    """
    num_rows, vocab_size = values_CV.shape
    width = min(BLOCK_IDS, vocab_size)
    first_ids_CK = (blocks_CK * BLOCK_IDS).clamp(max=vocab_size - width)
    # Copying whole rows from a view of overlapping windows is ten times as fast as copying single values.
    windows_XW = values_CV.contiguous().as_strided((values_CV.numel() - width + 1, width), (1, 1))
    row_starts_C1 = torch.arange(0, values_CV.numel(), vocab_size, device=values_CV.device)[:, None]
    values_CKW = windows_XW.index_select(0, (row_starts_C1 + first_ids_CK).flatten()).view(num_rows, -1, width)
    num_missing = -vocab_size % width
    if num_missing:
        rows, places = (blocks_CK == vocab_size // BLOCK_IDS).nonzero(as_tuple=True)
        values_CKW[rows, places, :num_missing] = fill
    return values_CKW, first_ids_CK
