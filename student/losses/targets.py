"""Sparse targets of valid positions as tensors, and their values at a temperature.

Shape legend: P valid positions; K head entries and J tail draws, each the largest number at any position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from storage.reading.cache import Cache


@dataclass(frozen=True, kw_only=True)
class SoftTargetSettings:
    """The settings of a cache's soft targets that the losses need.

    tail_weight: probability that each tail draw stands for, None when the tail was not sampled; temperatures: those
    that the cache was made for, first the one at which the tail was drawn.
    """

    tail_weight: float | None
    temperatures: tuple[float, ...]

    @property
    def served_temperatures(self) -> list[float]:
        """Temperatures that losses may have."""
        return sorted({1.0, *self.temperatures})

    def is_sampled_at(self, temperature: float) -> bool:
        """Return whether the tail was sampled from the teacher's distribution at this temperature."""
        return self.tail_weight is not None and temperature == self.temperatures[0]


def soft_target_settings(cache: Cache) -> SoftTargetSettings:
    """Return the settings of a cache that holds soft targets; raise RecordError when it does not state them."""
    return SoftTargetSettings(
        tail_weight=cache.setting("config", "soft_targets", "tail_weight"), temperatures=cache.identity.temperatures
    )


@dataclass(frozen=True, kw_only=True)
class SparseTargets:
    """Padded targets; a mask is False at the padding.

    head_ids, head_logprobs (nats), is_head (mask) [P, K]; tail_logprob [P] nats, −inf for an empty tail; tail_ids,
    is_drawn (mask) [P, J]: draws from the tail; tail_weight: probability that each draw stands for, a number or [P, 1],
    None when the tail was not sampled; tempered_tail_logmass [P]: log Σ_tail p^(1/T), needed for a temperature T other
    than 1, else None; label_ids [P] int64: the next tokens.

    head_ids and tail_ids are int32 or int64. An int32 batch is faster to make and needs half the bytes on its way to a
    GPU. `slice` returns int64, which gather needs.
    """

    head_ids: Tensor
    head_logprobs: Tensor
    is_head: Tensor
    tail_logprob: Tensor
    tail_ids: Tensor
    is_drawn: Tensor
    tail_weight: float | Tensor | None
    tempered_tail_logmass: Tensor | None
    label_ids: Tensor

    def __len__(self) -> int:
        return len(self.label_ids)

    @classmethod
    def labels_only(cls, label_ids: Tensor) -> SparseTargets:
        """Return targets for the next-token loss alone, with no entries of a teacher. label_ids [P] int64."""
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
        """Return the targets of positions [start, stop), with ids in int64."""
        tempered, weight = self.tempered_tail_logmass, self.tail_weight
        return SparseTargets(
            head_ids=self.head_ids[start:stop].long(),
            head_logprobs=self.head_logprobs[start:stop],
            is_head=self.is_head[start:stop],
            tail_logprob=self.tail_logprob[start:stop],
            tail_ids=self.tail_ids[start:stop].long(),
            is_drawn=self.is_drawn[start:stop],
            tail_weight=weight[start:stop] if isinstance(weight, Tensor) else weight,
            tempered_tail_logmass=None if tempered is None else tempered[start:stop],
            label_ids=self.label_ids[start:stop],
        )

    def without_rows_from(self, num_rows: int, temperature: float) -> tuple[SparseTargets, Tensor, Tensor]:
        """Return the targets for a student whose vocabulary has num_rows rows, fewer than the teacher's.

        Entries with other ids are left out: their mass in the head goes to the tail, and draws no longer stand for
        anything, so that Σ q is that of the ids that are left. Return also the probability of these entries [P], and
        what they add to the teacher's entropy [P]: −p log p for head entries, and −τ log τ for a draw with an unknown
        p < τ, which in the mean is too little. temperature: that of tempered_tail_logmass.
        """
        is_lost_PK, is_lost_PJ = self.is_head & (self.head_ids >= num_rows), self.is_drawn & (self.tail_ids >= num_rows)
        logprobs_PK = self.head_logprobs.masked_fill(~is_lost_PK, -torch.inf)
        probs_PK, num_lost_P = logprobs_PK.exp(), is_lost_PJ.sum(1).to(logprobs_PK.dtype)
        assert not isinstance(self.tail_weight, Tensor)
        tau, tempered_P = self.tail_weight or 1.0, self.tempered_tail_logmass
        targets = replace(
            self,
            head_ids=self.head_ids.masked_fill(is_lost_PK, 0),
            is_head=self.is_head & ~is_lost_PK,
            tail_logprob=torch.logaddexp(self.tail_logprob, logprobs_PK.logsumexp(1)),
            tail_ids=self.tail_ids.masked_fill(is_lost_PJ, 0),
            is_drawn=self.is_drawn & ~is_lost_PJ,
            tempered_tail_logmass=(
                None if tempered_P is None else tempered_P.logaddexp((logprobs_PK / temperature).logsumexp(1))
            ),
        )
        mass_P = probs_PK.sum(1) + num_lost_P * tau
        entropy_P = -torch.xlogy(probs_PK, probs_PK).sum(1) - num_lost_P * tau * math.log(tau)
        return targets, mass_P, entropy_P

    def coarse_logprobs(self, temperature: float) -> Tensor:
        """Return the teacher's log-probabilities of the K head ids and of the tail [P, K + 1], −inf at padding.

        With s = 1/T, a head entry has log p_i(T) = s log p_i − A and the tail has τ(s) − A. Here τ(s) is the log of the
        stored tempered tail mass, and A = logaddexp(logsumexp_head(s log p), τ(s)). Subtracting A also removes the
        error that rounding makes in the total mass, so that a student equal to the teacher has loss 0.
        """
        if temperature == 1.0:
            tail_P, scale = self.tail_logprob, 1.0
        else:
            assert self.tempered_tail_logmass is not None
            tail_P, scale = self.tempered_tail_logmass, 1.0 / temperature
        head_PK = (self.head_logprobs * scale).masked_fill(~self.is_head, -torch.inf)
        return torch.log_softmax(torch.cat([head_PK, tail_P[:, None]], dim=1), dim=1)

    def sampled_weights(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Return the ids and the weights q of the unbiased target, both [P, K + J]; q is 0 at padding.

        E[q] = p(T) for the temperature T at which the tail was drawn.
        """
        assert self.tail_weight is not None
        head_PK = self._head_logprobs_at(temperature).exp().masked_fill(~self.is_head, 0.0)
        tail_PJ = self.is_drawn.to(head_PK.dtype) * self.tail_weight
        return torch.cat([self.head_ids, self.tail_ids], dim=1), torch.cat([head_PK, tail_PJ], dim=1)

    def _head_logprobs_at(self, temperature: float) -> Tensor:
        if temperature == 1.0:
            return self.head_logprobs
        return self.coarse_logprobs(temperature)[:, :-1]
