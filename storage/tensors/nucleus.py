"""The sampler of teacher and student. Both draw tokens with it, so equal models write equal texts from equal seeds.

Shape legend: R rows, V vocabulary, K most probable ids of a row in descending order of probability.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from storage.draws import hash_uniform
from storage.tensors.running_sum import find_in_running_sum
from storage.tensors.vocabulary_blocks import block_sums

# Outside these limits logprobs / temperature can leave the range of float32. At the limits, draws no longer depend on
# the temperature.
_LOWEST_TEMPERATURE, _HIGHEST_TEMPERATURE = 1e-30, 1e30


def draw_uniforms(seeds_R: NDArray[np.uint64], steps_R: ArrayLike, device: torch.device) -> Tensor:
    """Return uniform numbers, float64 in [0, 1): [R]. Each draws the token at a step of the text with that seed.

    seeds_R: seed of each text. steps_R: index of the token in the text, counted from 0.
    """
    return torch.from_numpy(hash_uniform(seeds_R, steps_R)).to(device)


def draw_ids(logprobs_RV: Tensor, uniforms_R: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """Draw one id per row: int64 [R], the first i with q_0 + … + q_i > u · Σ q.

    q = softmax(logprobs / temperature). With top_p < 1, q is 0 outside the nucleus (Holtzman et al. 2020, section 3.1):
    the smallest set of most probable ids whose probability reaches top_p; among equal probabilities, the lower ids come
    first. Sums are float64, so that rounding loses no id. A row with NaN gives some id of the vocabulary.

    logprobs_RV: in nats; the probabilities of each row sum to 1. uniforms_R: u, float64 in [0, 1).
    """
    temperature = min(max(temperature, _LOWEST_TEMPERATURE), _HIGHEST_TEMPERATURE)
    probs_RV = logprobs_RV.exp() if temperature == 1.0 else torch.softmax(logprobs_RV / temperature, dim=1)
    if top_p < 1.0:
        sorted_RV, order_RV = probs_RV.sort(dim=1, descending=True, stable=True)
        sorted_RV = sorted_RV.masked_fill(~is_in_nucleus(sorted_RV, top_p), 0.0)
        probs_RV = torch.zeros_like(probs_RV).scatter(1, order_RV, sorted_RV)
    sums_RB = block_sums(probs_RV)
    return find_in_running_sum(probs_RV, sums_RB, uniforms_R[:, None] * sums_RB.sum(1, keepdim=True))[:, 0]


def is_in_nucleus(probs_RK: Tensor, top_p: float) -> Tensor:
    """Return which ids are in the nucleus, the fewest most probable ids whose probability reaches top_p: bool [R, K].

    probs_RK: probabilities in descending order.
    """
    before_RK = probs_RK.cumsum(1, dtype=torch.float64) - probs_RK
    return before_RK < top_p
