"""Compute what needs every logit of a row, in one pass over groups of rows that stay in the processor's cache.

Shape legend: C positions, V vocabulary, B blocks of neighbouring ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from storage.tensors.vocabulary_blocks import num_blocks, split_blocks

# Bytes of logits per core in a group. With their exponentials they fill less than half of a 2 MB cache.
_GROUP_BYTES_PER_THREAD = 410 << 10


@dataclass(frozen=True, kw_only=True)
class VocabularyScan:
    """Logits prepared for sparse targets.

    shifted_CV: float32 logits in nats minus the largest logit of their row. maxima_CB: largest logit of every block,
    not shifted. sums_CB: float32 sums of exp(shifted) over every block. partition_C: float64 sum of sums_CB; the
    probabilities are exp(shifted) / partition. log_partition_C: its logarithm, float32. entropy_C: float32 nats.
    largest_C: largest logit of every row; a row for which it is not finite is no distribution.

    A logit of −∞ is an id with probability 0.
    """

    shifted_CV: Tensor
    maxima_CB: Tensor
    sums_CB: Tensor
    partition_C: Tensor
    log_partition_C: Tensor
    entropy_C: Tensor
    largest_C: Tensor


def scan_logits(logits_CV: Tensor) -> VocabularyScan:
    """Scan float32 logits and overwrite them with shifted_CV. Exponentials exist for one group at a time."""
    num_rows, vocab_size = logits_CV.shape
    maxima_CB = logits_CV.new_empty((num_rows, num_blocks(vocab_size)))
    sums_CB = torch.empty_like(maxima_CB)
    dots_C = logits_CV.new_empty(num_rows)
    whole_CBW, rest_CW = split_blocks(logits_CV)
    whole = slice(whole_CBW.shape[1])
    if rest_CW is not None:
        torch.amax(rest_CW, dim=1, out=maxima_CB[:, -1])
    group_rows = _rows_per_group(logits_CV)
    exps_GV = torch.empty_like(logits_CV[:group_rows])
    for first in range(0, num_rows, group_rows):
        rows = slice(first, first + group_rows)
        torch.amax(whole_CBW[rows], dim=2, out=maxima_CB[rows, whole])
        shifted_CV = logits_CV[rows].sub_(maxima_CB[rows].amax(dim=1, keepdim=True))
        exps_CV = torch.exp(shifted_CV, out=exps_GV[: len(shifted_CV)])
        torch.sum(split_blocks(exps_CV)[0], dim=2, out=sums_CB[rows, whole])
        torch.sum(exps_CV.mul_(shifted_CV), dim=1, out=dots_C[rows])
    if rest_CW is not None:
        torch.sum(rest_CW.exp(), dim=1, out=sums_CB[:, -1])
    partition_C = sums_CB.sum(dim=1, dtype=torch.float64)
    log_partition_C = partition_C.log()
    largest_C = maxima_CB.amax(dim=1)
    _mend_dots(dots_C, logits_CV, largest_C)
    return VocabularyScan(
        shifted_CV=logits_CV,
        maxima_CB=maxima_CB,
        sums_CB=sums_CB,
        partition_C=partition_C,
        log_partition_C=log_partition_C.float(),
        entropy_C=(log_partition_C - dots_C / partition_C).float(),
        largest_C=largest_C,
    )


def _mend_dots(dots_C: Tensor, shifted_CV: Tensor, largest_C: Tensor) -> None:
    """Compute Σ exp(shifted) · shifted again where logits of −∞ made it NaN: an id with probability 0 adds nothing."""
    rows = (dots_C.isnan() & largest_C.isfinite()).nonzero()[:, 0]
    for part in torch.split(rows, _rows_per_group(shifted_CV)):
        shifted_GV = shifted_CV[part]
        dots_C[part] = (shifted_GV.exp() * shifted_GV.masked_fill_(shifted_GV == -torch.inf, 0.0)).sum(dim=1)


def _rows_per_group(logits_CV: Tensor) -> int:
    if logits_CV.device.type != "cpu":
        return len(logits_CV)
    return torch.get_num_threads() * max(1, _GROUP_BYTES_PER_THREAD // (4 * logits_CV.shape[1]))
