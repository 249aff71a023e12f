"""Sparse targets of valid positions as tensors, and what temperature does to them.

Shape legend: P valid positions, K most head entries, J most tail draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from storage.reading.cache import Cache


@dataclass(frozen=True, kw_only=True)
class SoftTargetSettings:
    """How the cache's soft targets were made, as far as the losses care."""

    tail_weight: float | None
    temperatures: tuple[float, ...]


def soft_target_settings(cache: Cache) -> SoftTargetSettings:
    """Settings of a cache that holds soft targets."""
    return SoftTargetSettings(
        tail_weight=cache.setting("config", "soft_targets", "tail_weight"), temperatures=cache.identity.temperatures
    )


@dataclass(frozen=True, kw_only=True)
class SparseTargets:
    """Padded targets; padding is where the mask is False.

    head_ids [P, K], head_logprobs [P, K] nats, is_head [P, K]; tail_logprob [P] nats (−inf for an
    empty tail); tail_ids [P, J], is_drawn [P, J]: ids that each stand for `tail_weight`;
    tempered_tail_logmass [P]: log Σ_tail p^(1/T) when the loss needs a temperature other than 1;
    label_ids [P] int64. tail_weight None: the tail was not sampled. head_ids and tail_ids are int32 or int64: as
    int32 a batch is made faster and takes half the bytes on its way to a GPU; `slice` gives int64, which gather needs.
    """

    head_ids: Tensor
    head_logprobs: Tensor
    is_head: Tensor
    tail_logprob: Tensor
    tail_ids: Tensor
    is_drawn: Tensor
    tail_weight: float | None
    tempered_tail_logmass: Tensor | None
    label_ids: Tensor

    def __len__(self) -> int:
        return len(self.label_ids)

    @classmethod
    def labels_only(cls, label_ids: Tensor) -> SparseTargets:
        """Targets for plain next-token loss: no teacher in them."""
        no_ids = label_ids.new_zeros((len(label_ids), 0))
        return cls(
            head_ids=no_ids,
            head_logprobs=no_ids.float(),
            is_head=no_ids.bool(),
            tail_logprob=label_ids.new_zeros(len(label_ids)).float(),
            tail_ids=no_ids,
            is_drawn=no_ids.bool(),
            tail_weight=None,
            tempered_tail_logmass=None,
            label_ids=label_ids,
        )

    def slice(self, start: int, stop: int) -> SparseTargets:
        """Positions [start, stop), with ids in int64."""
        tempered = self.tempered_tail_logmass
        return SparseTargets(
            head_ids=self.head_ids[start:stop].long(),
            head_logprobs=self.head_logprobs[start:stop],
            is_head=self.is_head[start:stop],
            tail_logprob=self.tail_logprob[start:stop],
            tail_ids=self.tail_ids[start:stop].long(),
            is_drawn=self.is_drawn[start:stop],
            tail_weight=self.tail_weight,
            tempered_tail_logmass=None if tempered is None else tempered[start:stop],
            label_ids=self.label_ids[start:stop],
        )

    def coarse_logprobs(self, temperature: float) -> Tensor:
        """The teacher's log-probabilities on K head ids and the tail [P, K + 1], −inf at padding.

        With s = 1/T: log p_i(T) = s log p_i − A and the tail's is τ(s) − A, where τ(s) is the stored
        tempered tail mass and A = logaddexp(logsumexp_head(s log p), τ(s)). Subtracting A also takes
        out what rounding did to the total mass, so that a student equal to the teacher has loss 0.
        """
        if temperature == 1.0:
            tail_P, scale = self.tail_logprob, 1.0
        else:
            assert self.tempered_tail_logmass is not None
            tail_P, scale = self.tempered_tail_logmass, 1.0 / temperature
        head_PK = (self.head_logprobs * scale).masked_fill(~self.is_head, -torch.inf)
        return torch.log_softmax(torch.cat([head_PK, tail_P[:, None]], dim=1), dim=1)

    def sampled_weights(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Ids [P, K + J] and weights q [P, K + J] of the unbiased target, 0 at padding; E[q] = p(T)."""
        assert self.tail_weight is not None
        head_PK = self._head_logprobs_at(temperature).exp().masked_fill(~self.is_head, 0.0)
        tail_PJ = self.is_drawn.to(head_PK.dtype) * self.tail_weight
        return torch.cat([self.head_ids, self.tail_ids], dim=1), torch.cat([head_PK, tail_PJ], dim=1)

    def _head_logprobs_at(self, temperature: float) -> Tensor:
        if temperature == 1.0:
            return self.head_logprobs
        return self.coarse_logprobs(temperature)[:, :-1]
