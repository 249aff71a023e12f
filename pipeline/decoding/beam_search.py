"""Beam search over left-padded prompts. The results are those of transformers' beam search (early_stopping False).

At every step a prompt has up to B unfinished beams. Take the K continuations with the largest summed logprobs, where K
is 2B, or (E + 1) B with E > 1 end ids: so many hold at least B that do not end. Those among the first B that end the
text become finished candidates. The best B that do not end it become the next beams. A
prompt keeps the B finished candidates with the best scores, sum / length^length_penalty. It is done when it has B of
them and its best beam, scored at its current length, is no better than the worst of them. At max_new_tokens every
continuation ends.

The first child of a beam keeps its parent's slot of the key-value cache. Only later children need a copy, and only of
the generated tokens, since all beams of a prompt share the prompt.

Shape legend: P prompts, B beams, K continuations, S slots, R rows of a batch, C rows of a chunk, U distinct prompts, D
width, V vocabulary, L length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.decoding.prefill import prefill
from pipeline.decoding.sampling import CHUNK_ROWS, require_distributions
from pipeline.decoding.slot_cache import SlotCache
from pipeline.teacher.model import Teacher

# Drop the prompts that are done once they are this share of the batch. Dropping copies the cache.
_DONE_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A candidate: its ids [n] and the sum of their logprobs in nats."""

    ids: NDArray[np.int64]
    sum_logprob: float


@torch.inference_mode()
def beam_search(
    teacher: Teacher, prompts: list[NDArray[Any]], *, num_beams: int, max_new_tokens: int, length_penalty: float
) -> list[list[Finished]]:
    """Return up to num_beams candidates of each prompt, best first, all different.

    A candidate ends with one of the teacher's end ids, which is part of it, or has max_new_tokens tokens. Raises
    UnusableLogitsError with the prompt's index.
    """
    search = _Search(len(prompts), num_beams, max_new_tokens, length_penalty, teacher.end_ids)
    prefilled = prefill(teacher, prompts)
    num_kept = search.num_continuations
    logprobs_UK, ids_UK = _best_next(teacher, prefilled.hidden_UD, num_kept, prefilled.first_of_distinct)
    search.advance(logprobs_UK[prefilled.rows][:, None], ids_UK[prefilled.rows][:, None])
    slots = np.arange(len(prompts) * num_beams)
    longest_prompt = int(prefilled.lengths.max())
    cache = SlotCache(prefilled.cache, len(slots), longest_prompt=longest_prompt, spare_columns=max_new_tokens)
    cache.place(slots, prefilled.cache, prefilled.rows.repeat(num_beams), prefilled.lengths.repeat(num_beams))
    while not search.is_done_P.all():
        if search.is_done_P.mean() >= _DONE_SHARE:
            cache.keep(search.drop_done())
        mask_SL, positions_S1 = cache.open_column()
        ids_S1 = teacher.to_device(search.last_ids()[:, None])
        hidden_SD = teacher.last_hidden(ids_S1, mask_SL, positions_S1, cache)
        logprobs_SK, next_ids_SK = _best_next(teacher, hidden_SD, num_kept, search.prompts_of_slots())
        num_columns = search.length
        parents_PB = search.advance(search.by_beam(logprobs_SK), search.by_beam(next_ids_SK))
        cache.copy(*search.move(parents_PB), num_columns=num_columns)
    search.drop_done()
    return search.found


def _best_next(
    teacher: Teacher, hidden_RD: Tensor, count: int, prompts_R: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return logprobs and ids [R, K] of the most probable next tokens, at most `count` of them.

    prompts_R: the prompt of each row. Raises UnusableLogitsError.
    """
    logits_RV = teacher.logits(hidden_RD)
    best = []
    for first in range(0, len(logits_RV), CHUNK_ROWS):
        logprobs_CK, ids_CK = torch.log_softmax(logits_RV[first : first + CHUNK_ROWS], dim=1).topk(
            min(count, teacher.vocab_size), dim=1
        )
        best.append(torch.stack([logprobs_CK.double(), ids_CK.double()]))  # float64 holds both: one transfer, not two
    logprobs_RK, ids_RK = torch.cat(best, dim=1).cpu().numpy()
    require_distributions(logprobs_RK[:, 0], logits_RV, prompts_R)
    return np.minimum(logprobs_RK, 0.0), ids_RK.astype(np.int64)


class _Search:
    """The search state of the P prompts that are still in the batch.

    A missing beam or candidate has the sum -inf. `_slots_PB`: which of its prompt's B slots each beam has. `found`: the
    candidates of all prompts, filled when a prompt is dropped.
    """

    def __init__(
        self, num_prompts: int, num_beams: int, max_new_tokens: int, length_penalty: float, end_ids: tuple[int, ...]
    ) -> None:
        self._max_new_tokens, self._length_penalty, self._end_ids = max_new_tokens, length_penalty, end_ids
        self.num_continuations = max(2, 1 + len(end_ids)) * num_beams
        self.length = 0
        self.found: list[list[Finished]] = [[] for _ in range(num_prompts)]
        self._prompts_P = np.arange(num_prompts)
        self.is_done_P = np.zeros(num_prompts, dtype=bool)
        # Start with one beam per prompt: the prompt itself.
        self._sums_PB = np.zeros((num_prompts, 1))
        self._ids_PBL = np.zeros((num_prompts, 1, max_new_tokens), dtype=np.int64)
        self._slots_PB = np.tile(np.arange(num_beams), (num_prompts, 1))
        self._finished = _Candidates(num_prompts, num_beams, max_new_tokens)

    def advance(self, logprobs_PBK: NDArray[np.float64], ids_PBK: NDArray[np.int64]) -> NDArray[np.int64]:
        """Take one step with the best next tokens of every beam. Return the parent of each new beam [P, B]."""
        num_beams = self._slots_PB.shape[1]
        sums, parents, ids = self._best_continuations(logprobs_PBK, ids_PBK, self.num_continuations)
        texts = np.take_along_axis(self._ids_PBL, parents[:, :, None], axis=1)
        texts[:, :, self.length] = ids
        self.length += 1
        ends = np.isin(ids, self._end_ids) | (self.length == self._max_new_tokens)
        may_finish = ends & (np.arange(self.num_continuations) < num_beams)
        penalty = self.length**self._length_penalty
        self._finished.add(np.where(may_finish, sums, -np.inf) / penalty, sums, texts, self.length)
        alive_sums = np.where(ends, -np.inf, sums)
        order = np.argsort(-alive_sums, axis=1, kind="stable")[:, :num_beams]
        self._sums_PB = np.take_along_axis(alive_sums, order, axis=1)
        self._ids_PBL = np.take_along_axis(texts, order[:, :, None], axis=1)
        self.is_done_P |= self._sums_PB[:, 0] / penalty <= self._finished.scores_PB[:, -1]
        self._sums_PB[self.is_done_P] = -np.inf
        return np.take_along_axis(parents, order, axis=1)

    def by_beam(self, values_SK: NDArray[Any]) -> NDArray[Any]:
        """Reorder values of slots into values of beams [P, B, K]."""
        values_PBK = values_SK.reshape(*self._slots_PB.shape, -1)
        by_beam: NDArray[Any] = np.take_along_axis(values_PBK, self._slots_PB[:, :, None], axis=1)
        return by_beam

    def last_ids(self) -> NDArray[np.int64]:
        """Return the last token of the beam in each slot [S]."""
        ids_PB = np.zeros_like(self._slots_PB)
        np.put_along_axis(ids_PB, self._slots_PB, self._ids_PBL[:, :, self.length - 1], axis=1)
        return ids_PB.reshape(-1)

    def prompts_of_slots(self) -> NDArray[np.int64]:
        """Return the prompt of each slot [S]."""
        return self._prompts_P.repeat(self._slots_PB.shape[1])

    def move(self, parents_PB: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Assign slots to the new beams: a parent's slot to its first child. Return the slots to copy from and to."""
        num_beams = parents_PB.shape[1]
        parent_slots_PB = np.take_along_axis(self._slots_PB, parents_PB, axis=1)
        same_PBB = parent_slots_PB[:, :, None] == parent_slots_PB[:, None, :]
        is_later_child_PB = np.tril(same_PBB, k=-1).any(axis=2)
        is_free_PB = (parent_slots_PB[:, :, None] != np.arange(num_beams)).all(axis=1)
        # Every prompt has as many free slots as later children. Both are in ascending order, prompt by prompt.
        self._slots_PB = parent_slots_PB.copy()
        self._slots_PB[is_later_child_PB] = np.nonzero(is_free_PB)[1]
        prompt, beam = np.nonzero(is_later_child_PB)
        first_slot = prompt * num_beams
        return first_slot + parent_slots_PB[prompt, beam], first_slot + self._slots_PB[prompt, beam]

    def drop_done(self) -> NDArray[np.int64]:
        """Move the candidates of prompts that are done to `found`. Return the slots of the prompts that stay."""
        for row in np.flatnonzero(self.is_done_P).tolist():
            self.found[self._prompts_P[row]] = self._finished.of(row)
        kept = np.flatnonzero(~self.is_done_P)
        self._prompts_P, self.is_done_P = self._prompts_P[kept], self.is_done_P[kept]
        self._sums_PB, self._ids_PBL, self._slots_PB = self._sums_PB[kept], self._ids_PBL[kept], self._slots_PB[kept]
        self._finished.keep(kept)
        num_beams = self._slots_PB.shape[1]
        slots: NDArray[np.int64] = (kept[:, None] * num_beams + np.arange(num_beams)).reshape(-1)
        return slots

    def _best_continuations(
        self, logprobs_PBK: NDArray[np.float64], ids_PBK: NDArray[np.int64], count: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Return sums, parents and last ids [P, count] of the best continuations; ties: earlier beam, then lower id."""
        num_prompts, num_parents, num_next = ids_PBK.shape
        sums = (self._sums_PB[:, :, None] + logprobs_PBK).reshape(num_prompts, -1)
        ids = ids_PBK.reshape(num_prompts, -1)
        parents = np.broadcast_to(np.repeat(np.arange(num_parents), num_next), ids.shape)
        order = np.lexsort((ids, parents, -sums))[:, :count]
        missing = ((0, 0), (0, count - order.shape[1]))
        return (
            np.pad(np.take_along_axis(sums, order, axis=1), missing, constant_values=-np.inf),
            np.pad(np.take_along_axis(parents, order, axis=1), missing),
            np.pad(np.take_along_axis(ids, order, axis=1), missing),
        )


class _Candidates:
    """The B best finished candidates of every prompt, best score first [P, B]; ids [P, B, L], filled up to lengths."""

    def __init__(self, num_prompts: int, num_beams: int, max_new_tokens: int) -> None:
        self.scores_PB = np.full((num_prompts, num_beams), -np.inf)
        self._sums_PB = np.full((num_prompts, num_beams), -np.inf)
        self._lengths_PB = np.zeros((num_prompts, num_beams), dtype=np.int64)
        self._ids_PBL = np.zeros((num_prompts, num_beams, max_new_tokens), dtype=np.int64)

    def add(self, scores: NDArray[np.float64], sums: NDArray[np.float64], ids: NDArray[np.int64], length: int) -> None:
        """Add candidates [P, K] with ids [P, K, L], all of one length, and keep the best B of each prompt."""
        num_beams = self.scores_PB.shape[1]
        all_scores = np.concatenate([self.scores_PB, scores], axis=1)
        order = np.argsort(-all_scores, axis=1, kind="stable")[:, :num_beams]

        def chosen(old: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
            both = np.concatenate([old, new], axis=1)
            return np.take_along_axis(both, order.reshape(order.shape + (1,) * (both.ndim - 2)), axis=1)

        self.scores_PB = chosen(self.scores_PB, scores)
        self._sums_PB = chosen(self._sums_PB, sums)
        self._lengths_PB = chosen(self._lengths_PB, np.full(scores.shape, length))
        self._ids_PBL = chosen(self._ids_PBL, ids)

    def keep(self, prompts: NDArray[np.int64]) -> None:
        """Keep these prompts and drop all others."""
        self.scores_PB, self._sums_PB = self.scores_PB[prompts], self._sums_PB[prompts]
        self._lengths_PB, self._ids_PBL = self._lengths_PB[prompts], self._ids_PBL[prompts]

    def of(self, prompt: int) -> list[Finished]:
        """Return the candidates of a prompt, best first."""
        return [
            Finished(
                ids=self._ids_PBL[prompt, rank, : self._lengths_PB[prompt, rank]].copy(),
                sum_logprob=float(self._sums_PB[prompt, rank]),
            )
            for rank in np.flatnonzero(np.isfinite(self.scores_PB[prompt]))
        ]
