"""What needs every logit of a row, found in one walk over groups of rows that stay in the processor's cache.

Shape legend: C positions, V vocabulary, B blocks of neighbouring ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.vocabulary_blocks import block_maxima, block_sums, num_blocks

# Bytes of logits that one core works on: they and their probabilities stay in a cache of 2 MB.
_GROUP_BYTES_PER_THREAD = 820 << 10


@dataclass(frozen=True, kw_only=True)
class VocabularyScan:
    """Float32 logprobs_CV in nats, their largest value per block [C, B], the sum of the blocks' probabilities
    [C, B], and the entropy [C] in nats."""

    logprobs_CV: Tensor
    maxima_CB: Tensor
    sums_CB: Tensor
    entropy_C: Tensor


def scan_logits(logits_CV: Tensor, sums_dtype: torch.dtype) -> VocabularyScan:
    """Scan float32 logits; their memory then holds the logprobs. Probabilities exist for one group at a time."""
    num_rows, vocab_size = logits_CV.shape
    scan = VocabularyScan(
        logprobs_CV=logits_CV,
        maxima_CB=logits_CV.new_empty((num_rows, num_blocks(vocab_size))),
        sums_CB=logits_CV.new_empty((num_rows, num_blocks(vocab_size)), dtype=sums_dtype),
        entropy_C=logits_CV.new_empty(num_rows),
    )
    group_rows = _rows_per_group(logits_CV)
    probs_GV = torch.empty_like(logits_CV[:group_rows])
    for first in range(0, num_rows, group_rows):
        rows = slice(first, first + group_rows)
        logprobs_CV = torch.log_softmax(logits_CV[rows], dim=1, out=logits_CV[rows])
        probs_CV = torch.exp(logprobs_CV, out=probs_GV[: len(logprobs_CV)])
        block_maxima(logprobs_CV, scan.maxima_CB[rows])
        block_sums(probs_CV, scan.sums_CB[rows])
        scan.entropy_C[rows] = -probs_CV.mul_(logprobs_CV).sum(dim=1)
    return scan


def _rows_per_group(logits_CV: Tensor) -> int:
    if logits_CV.device.type != "cpu":
        return len(logits_CV)
    return torch.get_num_threads() * max(1, _GROUP_BYTES_PER_THREAD // (4 * logits_CV.shape[1]))
