"""Turn full logits into sparse targets: an exact head, and a tail that is one number or an unbiased sample.

Shape legend: C positions of a chunk, V vocabulary, K head candidates, J tail draws.

The tail is drawn by systematic sampling without replacement (Madow 1949) with inclusion probabilities p_i / τ: each
threshold τ·u, τ·(u + 1), … draws the id at which the running sum of the tail's probabilities passes it. There is one
uniform number u per position. Each drawn id stands for probability τ, so E[q] = p. No id is drawn twice, as p_i < τ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.vocabulary.largest import largest
from pipeline.vocabulary.scan import VocabularyScan, scan_logits
from storage.tensors.nucleus import is_in_nucleus
from storage.tensors.running_sum import find_in_running_sum
from storage.tensors.vocabulary_blocks import BLOCK_IDS, gather_blocks

# Below this tail mass float32 probabilities have lost digits, so the tail is summed in log space.
_TINY_MASS = 1e-25
# Larger than the relative rounding error of a float32 sum of 64 probabilities. Intervals of a draw may be too wide by
# that error.
_SUM_ROUNDING = 2.0**-16


@dataclass(frozen=True, kw_only=True)
class SparseTargets:
    """Sparse targets of C positions: the fields of SoftTargetRows with all positions on one axis.

    head_size, tail_size [C]; ids [all E entries], head then tail per position, each ascending; logprobs [all H head
    entries] nats; tail_logprob, entropy, label_logprob [C] nats; largest_logit [C], not finite where there is no
    distribution; tempered_tail_logmass {temperature: [C]}.
    """

    head_size: NDArray[np.int64]
    tail_size: NDArray[np.int64]
    ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    tail_logprob: NDArray[np.float32]
    entropy: NDArray[np.float32]
    label_logprob: NDArray[np.float32]
    largest_logit: NDArray[np.float32]
    tempered_tail_logmass: dict[float, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class PaddedTargets:
    """Sparse targets of C positions on the teacher's device, padded where the masks are False.

    head_ids, head_logprobs, is_head [C, K], ids ascending; tail_ids, is_drawn [C, J], ids ascending;
    tail_logprob, entropy, label_logprob [C] nats; largest_logit [C]; tempered_tail_logmass {temperature: [C]}.
    """

    head_ids: Tensor
    head_logprobs: Tensor
    is_head: Tensor
    tail_ids: Tensor
    is_drawn: Tensor
    tail_logprob: Tensor
    entropy: Tensor
    label_logprob: Tensor
    largest_logit: Tensor
    tempered_tail_logmass: dict[float, Tensor]

    def to_host(self) -> PaddedTargets:
        """Return a copy on the host. Copies from a GPU, into pinned memory, may still be running when this returns."""
        narrow = {"head_ids": self.head_ids.int(), "tail_ids": self.tail_ids.int()}
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__} | narrow
        tempered = fields.pop("tempered_tail_logmass")
        return PaddedTargets(
            **{name: _on_host(tensor) for name, tensor in fields.items()},
            tempered_tail_logmass={t: _on_host(mass_C) for t, mass_C in tempered.items()},
        )

    def flatten(self) -> SparseTargets:
        """Return the targets without padding, head before tail at every position. The tensors must be on the host.

        Use NumPy, not PyTorch operators: with an operator on OpenMP threads beside those of the teacher, OpenMP would
        put all threads to sleep between operations, the teacher's threads too.
        """
        is_head_CK, is_drawn_CJ = _numpy(self.is_head), _numpy(self.is_drawn)
        ids_CE = np.concatenate([_numpy(self.head_ids), _numpy(self.tail_ids)], axis=1)
        return SparseTargets(
            head_size=is_head_CK.sum(axis=1),
            tail_size=is_drawn_CJ.sum(axis=1),
            ids=ids_CE[np.concatenate([is_head_CK, is_drawn_CJ], axis=1)].astype(np.int64),
            logprobs=_numpy(self.head_logprobs)[is_head_CK],
            tail_logprob=_numpy(self.tail_logprob),
            entropy=_numpy(self.entropy),
            label_logprob=_numpy(self.label_logprob),
            largest_logit=_numpy(self.largest_logit),
            tempered_tail_logmass={t: _numpy(mass_C) for t, mass_C in self.tempered_tail_logmass.items()},
        )


def sparsify(
    logits_CV: Tensor,
    label_ids_C: Tensor,
    uniforms_C: Tensor,
    *,
    top_k: int,
    top_p: float = 1.0,
    tail_weight: float | None,
    temperatures: tuple[float, ...],
) -> PaddedTargets:
    """Return the sparse targets of float32 logits. Overwrite the logits.

    uniforms_C: float64 in [0, 1), one per position, used when the tail is sampled. The head holds the top_k largest
    probabilities (ties: lower id first), but of these only the fewest whose sum reaches top_p. With a sampled tail, the
    head also holds every probability ≥ tail_weight at temperatures[0], the temperature at which the tail is drawn. Ids
    with logit −∞ are in neither head nor tail. A row whose largest_logit is not finite has no meaning.
    """
    scan = scan_logits(logits_CV)
    shifted_CV, log_partition_C1 = scan.shifted_CV, scan.log_partition_C[:, None]
    label_logprob_C = (shifted_CV.gather(1, label_ids_C[:, None]) - log_partition_C1)[:, 0]
    is_draw_tempered = tail_weight is not None and temperatures[0] != 1.0
    draw = scan_logits(shifted_CV / temperatures[0]) if is_draw_tempered else scan

    head_ids_CK, is_head_CK = _choose_head(scan, draw, top_k, top_p, tail_weight)
    head_logprobs_CK = (shifted_CV.gather(1, head_ids_CK) - log_partition_C1).clamp(max=0.0)
    tail_sums_CB = _remove(scan, head_ids_CK, is_head_CK)
    draw_sums_CB = _remove(draw, head_ids_CK, is_head_CK) if is_draw_tempered else tail_sums_CB
    tail_ids_CJ, is_drawn_CJ = _draw_tail(draw, draw_sums_CB, uniforms_C, tail_weight)
    return PaddedTargets(
        head_ids=head_ids_CK,
        head_logprobs=head_logprobs_CK,
        is_head=is_head_CK,
        tail_ids=tail_ids_CJ,
        is_drawn=is_drawn_CJ,
        tail_logprob=_tail_logprob(scan, tail_sums_CB),
        entropy=scan.entropy_C.clamp(min=0),
        label_logprob=label_logprob_C,
        largest_logit=scan.largest_C,
        tempered_tail_logmass={
            t: (shifted_CV / t).logsumexp(dim=1) - scan.log_partition_C / t for t in temperatures if t != 1.0
        },
    )


def _choose_head(
    scan: VocabularyScan, draw: VocabularyScan, top_k: int, top_p: float, tail_weight: float | None
) -> tuple[Tensor, Tensor]:
    """Return head candidates [C, K] in ascending id order and which of them are in the head [C, K]."""
    shifted_CV, vocab_size = scan.shifted_CV, scan.shifted_CV.shape[1]
    # At most 1 / τ probabilities are ≥ τ, so the 1 / τ largest ones include them all.
    num_candidates = top_k if tail_weight is None else max(top_k, math.floor(1 / tail_weight) + 1)
    num_candidates = min(num_candidates, vocab_size)
    values_CK, ids_CK = largest(shifted_CV, min(num_candidates + 1, vocab_size), scan.maxima_CB)
    _lower_ids_first(shifted_CV, values_CK, ids_CK)
    ids_CK = ids_CK[:, :num_candidates]
    is_head_CK = torch.arange(num_candidates, device=ids_CK.device).expand_as(ids_CK) < top_k
    if top_p < 1:
        probs_CK = shifted_CV.gather(1, ids_CK).double().exp() / scan.partition_C[:, None]
        is_head_CK = is_head_CK & is_in_nucleus(probs_CK, top_p)
    if tail_weight is not None:
        # Probabilities ≥ τ belong to the head: their inclusion probability p / τ would not be below 1.
        weights_CK = draw.shifted_CV.gather(1, ids_CK).exp().double()
        is_head_CK = is_head_CK | (weights_CK >= tail_weight * (1 - _SUM_ROUNDING) * draw.partition_C[:, None])
    is_head_CK = is_head_CK & (values_CK[:, :num_candidates] > -torch.inf)
    order_CK = ids_CK.argsort(dim=1)
    return ids_CK.gather(1, order_CK), is_head_CK.gather(1, order_CK)


def _lower_ids_first(logits_CV: Tensor, values_CK: Tensor, ids_CK: Tensor) -> None:
    """Put the lower ids of equal logits first in the top list, in place. topk returns ties in any order."""
    if values_CK.shape[1] < 2:
        return
    # topk puts NaN first. The caller refuses such rows. Ids with −∞ are not in the head, in any order.
    is_tied_CK = (values_CK[:, 1:] == values_CK[:, :-1]) & (values_CK[:, 1:] > -torch.inf)
    tied_C = is_tied_CK.any(dim=1) & ~values_CK[:, 0].isnan()
    for c in tied_C.nonzero()[:, 0].tolist():
        smallest = values_CK[c, -1]
        candidates = (logits_CV[c] >= smallest).nonzero()[:, 0]
        order = logits_CV[c, candidates].sort(descending=True, stable=True).indices
        ids_CK[c] = candidates[order[: ids_CK.shape[1]]]


def _remove(scan: VocabularyScan, ids_CK: Tensor, is_chosen_CK: Tensor) -> Tensor:
    """Set the chosen ids' shifted logits to −inf, in place. Return the new sums of exp(shifted) by block [C, B]."""
    kept_CK = scan.shifted_CV.gather(1, ids_CK).masked_fill(is_chosen_CK, -torch.inf)
    scan.shifted_CV.scatter_(1, ids_CK, kept_CK)
    blocks_CK = ids_CK // BLOCK_IDS
    changed_CKW, _ = gather_blocks(scan.shifted_CV, blocks_CK, -torch.inf)
    return scan.sums_CB.scatter(1, blocks_CK, changed_CKW.exp().sum(dim=2))


def _tail_logprob(scan: VocabularyScan, tail_sums_CB: Tensor) -> Tensor:
    """Return the log of the tail's mass [C]; −inf for an empty tail.

    Sum over the tail itself, never 1 − Σ head. scan.shifted_CV must hold the tail only.
    """
    mass_C = tail_sums_CB.sum(dim=1, dtype=torch.float64)
    logmass_C = mass_C.log().float()
    tiny_C = mass_C < _TINY_MASS
    if tiny_C.any():
        rows = tiny_C.nonzero()[:, 0]
        logmass_C[rows] = scan.shifted_CV[rows].logsumexp(dim=1)
    return (logmass_C - scan.log_partition_C).clamp(max=0.0)


def _draw_tail(
    draw: VocabularyScan, tail_sums_CB: Tensor, uniforms_C: Tensor, tail_weight: float | None
) -> tuple[Tensor, Tensor]:
    """Draw ids [C, J], ascending, with weights exp(draw.shifted_CV). Return them and which of them are valid [C, J]."""
    if tail_weight is None:
        empty = tail_sums_CB.new_zeros((len(tail_sums_CB), 0), dtype=torch.int64)
        return empty, empty.bool()
    mass_C1, partition_C1 = tail_sums_CB.sum(dim=1, keepdim=True, dtype=torch.float64), draw.partition_C[:, None]
    # NaN logits draw nothing here. The caller finds them by their entropy and refuses the row.
    largest_mass = (mass_C1 / partition_C1).nan_to_num(nan=0.0).max()
    num_draws = int(torch.ceil(largest_mass / tail_weight)) + 1
    steps_J = torch.arange(num_draws, device=tail_sums_CB.device, dtype=torch.float64)
    thresholds_CJ = (uniforms_C[:, None] + steps_J) * (tail_weight * partition_C1)
    is_drawn_CJ = thresholds_CJ < mass_C1
    return find_in_running_sum(draw.shifted_CV, tail_sums_CB, thresholds_CJ, are_logs=True), is_drawn_CJ


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", non_blocking=True)


def _numpy(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.numpy()
    return array
