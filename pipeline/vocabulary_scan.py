"""What needs every logit of a row, found in one walk over groups of rows that stay in the processor's cache.

Shape legend: C positions, V vocabulary, B blocks of neighbouring ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.vocabulary_blocks import block_maxima, block_sums

# Bytes of logits that one core works on: they and their probabilities stay in a cache of 2 MB.
_GROUP_BYTES_PER_THREAD = 640 << 10


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
    num_rows = _rows_per_group(logits_CV)
    probs_CV = torch.empty_like(logits_CV[:num_rows])
    maxima, sums, entropies = [], [], []
    for logits_GV in logits_CV.split(num_rows):
        logprobs_GV = torch.log_softmax(logits_GV, dim=1, out=logits_GV)
        probs_GV = torch.exp(logprobs_GV, out=probs_CV[: len(logits_GV)])
        maxima.append(block_maxima(logprobs_GV))
        sums.append(block_sums(probs_GV, sums_dtype))
        entropies.append(-torch.linalg.vecdot(probs_GV, logprobs_GV, dim=1))
    return VocabularyScan(
        logprobs_CV=logits_CV, maxima_CB=torch.cat(maxima), sums_CB=torch.cat(sums), entropy_C=torch.cat(entropies)
    )


def _rows_per_group(logits_CV: Tensor) -> int:
    if logits_CV.device.type != "cpu":
        return len(logits_CV)
    return torch.get_num_threads() * max(1, _GROUP_BYTES_PER_THREAD // (4 * logits_CV.shape[1]))
