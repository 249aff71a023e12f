"""Draw texts from the teacher with a key-value cache. Every text has a seed.

When a text ends, the next text takes its slot, so the batch stays full even if lengths differ a lot.
Shape legend: N texts, S slots, R rows of a batch, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.decoding.prefill import Prefilled, prefill
from pipeline.decoding.slot_cache import SlotCache
from pipeline.errors import UnusableLogitsError
from pipeline.teacher.model import Teacher
from storage.tensors.nucleus import draw_ids, draw_uniforms

# Prompts are sorted by length in windows of this many batches; a batch is one prompt per slot.
_WINDOW_BATCHES = 4
# When no text waits, drop the empty slots once they are this share of all slots. Dropping copies the cache.
_IDLE_SHARE = 0.25
# Rows of logits in a chunk: few enough that temporaries stay in the processor's cache and need no new memory pages.
CHUNK_ROWS = 16
_IDLE = -1  # stands for the text of an empty slot


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A drawn text: completion_ids [n] and completion_logprobs [n] (nats, the teacher's at temperature 1)."""

    completion_ids: NDArray[np.int64]
    completion_logprobs: NDArray[np.float32]
    finish_reason: str


@torch.inference_mode()
def stream_completions(
    teacher: Teacher,
    prompts: list[NDArray[Any]],
    seeds: NDArray[np.uint64],
    *,
    num_slots: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
) -> Iterator[Completion]:
    """Yield one completion per prompt, in order. The random numbers of prompt i depend only on seeds[i] and the step.

    A completion ends with one of the teacher's end ids, which is part of it (finish_reason "stop"), or after
    max_new_tokens tokens ("length"). Up to num_slots texts are drawn in parallel. Raises UnusableLogitsError with the
    prompt's index.
    """
    texts = _Texts(teacher, seeds, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    batch = _Batch(teacher, prompts, texts, num_slots)
    next_text = 0
    while next_text < len(prompts):
        batch.step()
        while next_text < len(prompts) and texts.is_done[next_text]:
            yield texts.completion(next_text)
            next_text += 1


class _Texts:
    """The texts drawn so far: ids and logprobs [N, max_new_tokens], filled up to lengths [N]."""

    def __init__(
        self, teacher: Teacher, seeds: NDArray[np.uint64], *, max_new_tokens: int, temperature: float, top_p: float
    ) -> None:
        self._teacher, self._seeds = teacher, seeds
        self._temperature, self._top_p = temperature, top_p
        self._ids = np.zeros((len(seeds), max_new_tokens), dtype=np.int64)
        self._logprobs = np.zeros((len(seeds), max_new_tokens), dtype=np.float32)
        self._lengths = np.zeros(len(seeds), dtype=np.int64)
        self.is_done = np.zeros(len(seeds), dtype=bool)

    @property
    def max_new_tokens(self) -> int:
        """Maximum number of tokens of a text."""
        return self._ids.shape[1]

    def last_ids(self, texts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the last token of each of `texts`."""
        ids: NDArray[np.int64] = self._ids[texts, self._lengths[texts] - 1]
        return ids

    def extend(self, texts: NDArray[np.int64], hidden_RD: Tensor) -> None:
        """Draw the next token of each of `texts` from the hidden state of its last token."""
        steps = self._lengths[texts]
        uniforms_R = draw_uniforms(self._seeds[texts], steps, hidden_RD.device)
        logits_RV = self._teacher.logits(hidden_RD)
        drawn = [
            self._draw(logits_RV[first : first + CHUNK_ROWS], uniforms_R[first : first + CHUNK_ROWS])
            for first in range(0, len(texts), CHUNK_ROWS)
        ]
        ids, logprobs = torch.cat(drawn, dim=1).cpu().numpy()
        require_distributions(logprobs, logits_RV, texts)
        self._ids[texts, steps], self._logprobs[texts, steps] = ids, logprobs
        self._lengths[texts] = steps + 1
        self.is_done[texts] = np.isin(ids, self._teacher.end_ids) | (steps + 1 == self.max_new_tokens)

    def _draw(self, logits_RV: Tensor, uniforms_R: Tensor) -> Tensor:
        """Draw ids; return ids and logprobs [2, R] as float64. That holds both exactly: one transfer, not two."""
        logprobs_RV = torch.log_softmax(logits_RV, dim=1)
        ids_R = draw_ids(logprobs_RV, uniforms_R, temperature=self._temperature, top_p=self._top_p)
        logprobs_R = logprobs_RV.gather(1, ids_R[:, None])[:, 0].clamp(max=0.0)
        return torch.stack([ids_R.double(), logprobs_R.double()])

    def completion(self, text: int) -> Completion:
        """Return the completion of a text that is done."""
        ids = self._ids[text, : self._lengths[text]].copy()
        return Completion(
            completion_ids=ids,
            completion_logprobs=self._logprobs[text, : len(ids)].copy(),
            finish_reason="stop" if ids[-1] in self._teacher.end_ids else "length",
        )


class _Batch:
    """The text in each slot, and the texts that wait for a slot."""

    def __init__(self, teacher: Teacher, prompts: list[NDArray[Any]], texts: _Texts, num_slots: int) -> None:
        self._teacher, self._prompts, self._texts = teacher, prompts, texts
        self._slots = np.full(min(num_slots, len(prompts)), _IDLE)
        self._not_begun = _sorted_in_windows(prompts, _WINDOW_BATCHES * num_slots)
        self._prefilled: Prefilled | None = None
        self._begun = np.zeros(0, dtype=np.int64)  # the texts of self._prefilled
        self._ready = np.zeros(0, dtype=np.int64)  # indices in self._begun of texts that wait for a slot
        self._cache: SlotCache | None = None

    def step(self) -> None:
        """Fill the idle slots while texts are left, then draw the next token of the text in every slot."""
        self._fill()
        self._shrink()
        busy = np.flatnonzero(self._slots != _IDLE)
        if self._cache is None or len(busy) == 0:
            return
        mask_SL, positions_S1 = self._cache.open_column()
        last_ids = np.where(self._slots != _IDLE, self._texts.last_ids(self._slots), 0)
        hidden_SD = self._teacher.last_hidden(
            self._teacher.to_device(last_ids[:, None]), mask_SL, positions_S1, self._cache
        )
        self._texts.extend(self._slots[busy], hidden_SD[self._teacher.to_device(busy)])
        ended = busy[self._texts.is_done[self._slots[busy]]]
        self._slots[ended] = _IDLE
        self._cache.release(ended)

    def _fill(self) -> None:
        idle = np.flatnonzero(self._slots == _IDLE)
        while len(idle) and len(self._ready) + len(self._not_begun):
            if len(self._ready) == 0:
                self._begin()
            placed, self._ready = self._ready[: len(idle)], self._ready[len(idle) :]
            self._place(idle[: len(placed)], placed)
            idle = idle[len(placed) :]

    def _begin(self) -> None:
        """Run the next prompts through the teacher and draw the first token of their texts."""
        num_slots = len(self._slots)
        self._begun, self._not_begun = self._not_begun[:num_slots], self._not_begun[num_slots:]
        self._prefilled = prefill(self._teacher, [self._prompts[text] for text in self._begun])
        rows = self._teacher.to_device(self._prefilled.rows)
        self._texts.extend(self._begun, self._prefilled.hidden_UD[rows])
        self._ready = np.flatnonzero(~self._texts.is_done[self._begun])

    def _place(self, slots: NDArray[np.int64], ready: NDArray[np.int64]) -> None:
        assert self._prefilled is not None
        if self._cache is None:
            self._cache = SlotCache(
                self._prefilled.cache,
                len(self._slots),
                longest_prompt=max(map(len, self._prompts)),
                spare_columns=2 * self._texts.max_new_tokens,
            )
        lengths = self._prefilled.lengths[ready]
        self._cache.place(slots, self._prefilled.cache, self._prefilled.rows[ready], lengths)
        self._slots[slots] = self._begun[ready]

    def _shrink(self) -> None:
        busy = np.flatnonzero(self._slots != _IDLE)
        if self._cache is not None and len(busy) <= (1 - _IDLE_SHARE) * len(self._slots):
            self._cache.keep(busy)
            self._slots = self._slots[busy]


def require_distributions(logprobs_R: NDArray[np.float64], logits_RV: Tensor, texts_R: NDArray[np.int64]) -> None:
    """Raise UnusableLogitsError if a row of logits is no distribution: then all of its log-probabilities are NaN.

    logprobs_R: any one of each row. texts_R: the text that each row belongs to.
    """
    for row in np.flatnonzero(np.isnan(logprobs_R))[:1].tolist():
        raise UnusableLogitsError(int(texts_R[row]), float(logits_RV[row].max()))


def batches_by_length(prompts: list[NDArray[Any]], batch_rows: int) -> list[NDArray[np.int64]]:
    """Return indices of prompts in batches of similar length, which need little padding."""
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
    return [order[first : first + batch_rows] for first in range(0, len(order), batch_rows)]


def _sorted_in_windows(prompts: list[NDArray[Any]], window: int) -> NDArray[np.int64]:
    """Return indices of prompts sorted by length inside windows.

    Windows are ascending and descending in turns, so that prompts at a boundary between windows have similar lengths.
    """
    lengths = np.array([len(prompt) for prompt in prompts])
    parts = []
    for first in range(0, len(prompts), window):
        up = first + np.argsort(lengths[first : first + window], kind="stable")
        parts.append(up if first // window % 2 == 0 else up[::-1])
    return np.concatenate(parts)
