"""The held-out prompts that the teacher continued, and the student's continuations of them.

Shape legend: N texts, V vocabulary.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from storage.draws import hash_u64, hash_uniform
from storage.progress import Progress
from storage.reading.cache import Cache
from storage.rows.samples import SampleRow, decode

_CHOICE_SEED = 22
# Most texts per prompt that are measured, whatever a cache holds.
_TEXTS_PER_PROMPT = 8
_BATCH_TOKENS = 8192


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How a cache's samples were drawn; eos_token_id None: no text ends before max_new_tokens."""

    temperature: float
    top_p: float
    max_new_tokens: int
    eos_token_id: int | None

    @classmethod
    def of_cache(cls, cache: Cache) -> SamplingSettings:
        """Settings of a cache that holds samples; RecordError where it does not state them."""
        return cls(
            temperature=float(cache.setting("config", "samples", "temperature")),
            top_p=float(cache.setting("config", "samples", "top_p")),
            max_new_tokens=cache.setting("config", "samples", "max_new_tokens"),
            eos_token_id=cache.setting("tokenizer", "eos_token_id"),
        )


def choose_prompts(cache: Cache, num_prompts: int) -> list[list[SampleRow]]:
    """The samples of `num_prompts` prompts of the validation split, or of all, chosen and ordered by a fixed seed.

    No two prompts have the same draws: of those that have in a merged cache, whose sources count rows each from 0, one
    can be chosen. Texts drawn alike would seem less varied than they are.
    """
    least: dict[int, int] = {}
    for key, rows in _keyed_prompts(cache):
        least[rows[0].seed] = min(key, least.get(rows[0].seed, key))
    different = ((key, rows) for key, rows in _keyed_prompts(cache) if least[rows[0].seed] == key)
    return [rows for _, rows in heapq.nsmallest(num_prompts, different, key=lambda entry: entry[0])]


@torch.inference_mode()
def continue_prompts(
    model: Any,
    rows: list[SampleRow],
    settings: SamplingSettings,
    *,
    batch_tokens: int = _BATCH_TOKENS,
    quiet: bool = True,
) -> list[NDArray[np.int64]]:
    """The student's text for each row's prompt, with the end-of-text token where it came to one.

    Draws are a function of the row's seed and the step, the very numbers that the teacher's text was drawn with: a
    student that equals its teacher writes the same texts, and what differs is not chance alone. Prompts of like length
    share a batch; its size changes texts only where rounding meets the edge of a draw.
    """
    # transformers fills what is not said below from settings shipped with the checkpoint; these are none of ours.
    model.generation_config = GenerationConfig()
    texts: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)] * len(rows)
    with Progress(len(rows), "continue", "texts", quiet=quiet) as bar:
        for places in _batches(rows, settings.max_new_tokens, batch_tokens):
            for place, text in zip(places, _continue(model, [rows[p] for p in places], settings), strict=True):
                texts[place] = text
            bar.update(len(places))
    return texts


def draw(logits_NV: Tensor, uniforms_N: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """One id per row [N] by inverting the running sum of probabilities in float64.

    With top_p < 1 only the nucleus counts (Holtzman et al. 2020, section 3.1): the smallest set of most probable tokens
    whose mass reaches top_p.
    """
    logits_NV = logits_NV.double()
    # The largest becomes 0 first, for a temperature near 0 would make it infinite.
    probs_NV = torch.softmax((logits_NV - logits_NV.amax(1, keepdim=True)) / temperature, dim=1)
    if top_p < 1.0:
        sorted_NV, order_NV = probs_NV.sort(dim=1, descending=True, stable=True)
        sorted_NV = sorted_NV.masked_fill(sorted_NV.cumsum(1) - sorted_NV >= top_p, 0.0)
        probs_NV = torch.zeros_like(probs_NV).scatter(1, order_NV, sorted_NV)
    running_NV = probs_NV.cumsum(1)
    total_N1 = running_NV[:, -1:].contiguous()
    ids_N1 = torch.searchsorted(running_NV, uniforms_N[:, None] * total_N1, right=True)
    # Rounding may ask for all of the total, which the last id with any probability reaches.
    return ids_N1.minimum((running_NV < total_N1).sum(1, keepdim=True))[:, 0]


class _SeededDraw(LogitsProcessor):  # type: ignore[misc]
    """Leaves the next token of each text as the only possible one."""

    def __init__(self, seeds_N: NDArray[np.uint64], num_prompt_tokens: int, settings: SamplingSettings) -> None:
        self._seeds_N, self._num_prompt_tokens, self._settings = seeds_N, num_prompt_tokens, settings

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self._num_prompt_tokens
        uniforms_N = torch.from_numpy(hash_uniform(self._seeds_N, step)).to(scores.device)
        ids_N = draw(scores, uniforms_N, temperature=self._settings.temperature, top_p=self._settings.top_p)
        return torch.full_like(scores, -torch.inf).scatter(1, ids_N[:, None], 0.0)


def _keyed_prompts(cache: Cache) -> Iterator[tuple[int, list[SampleRow]]]:
    """Each prompt with its place in the fixed order."""
    for number, rows in enumerate(_prompts(cache)):
        yield int(hash_u64(_CHOICE_SEED, number)), rows


def _prompts(cache: Cache) -> Iterator[list[SampleRow]]:
    """The first rows of each prompt; a merged cache counts prompts anew in each source."""
    rows = (row for batch in cache.record_batches("samples", "validation") for row in decode(batch))
    for _, group in itertools.groupby(rows, key=lambda row: (row.prompt_id, row.prompt_ids.tobytes())):
        yield list(itertools.islice(group, _TEXTS_PER_PROMPT))


def _batches(rows: list[SampleRow], max_new_tokens: int, batch_tokens: int) -> Iterator[list[int]]:
    """Places of rows, prompts of like length together."""
    order = sorted(range(len(rows)), key=lambda place: len(rows[place].prompt_ids))
    while order:
        longest = len(rows[order[-1]].prompt_ids) + max_new_tokens
        size = max(1, batch_tokens // longest)
        order, places = order[:-size], order[-size:]
        yield places


def _continue(model: Any, rows: list[SampleRow], settings: SamplingSettings) -> Iterator[NDArray[np.int64]]:
    """Texts of one batch, prompts padded on the left; positions count from a prompt's first token."""
    longest = max(len(row.prompt_ids) for row in rows)
    ids, is_token = np.zeros((2, len(rows), longest), dtype=np.int64)
    for place, row in enumerate(rows):
        ids[place, longest - len(row.prompt_ids) :] = row.prompt_ids
        is_token[place, longest - len(row.prompt_ids) :] = 1
    seeds = np.array([row.seed for row in rows], dtype=np.uint64)
    eos_token_id = settings.eos_token_id
    output = model.generate(
        input_ids=torch.from_numpy(ids).to(model.device),
        attention_mask=torch.from_numpy(is_token).to(model.device),
        logits_processor=LogitsProcessorList([_SeededDraw(seeds, longest, settings)]),
        generation_config=GenerationConfig(
            max_new_tokens=settings.max_new_tokens, eos_token_id=eos_token_id, pad_token_id=eos_token_id or 0
        ),
    )
    for new_ids in output[:, longest:].cpu().numpy():
        yield new_ids if eos_token_id is None else _up_to_end(new_ids, eos_token_id)


def _up_to_end(ids: NDArray[np.int64], eos_token_id: int) -> NDArray[np.int64]:
    ends = np.flatnonzero(ids == eos_token_id)
    return ids[: ends[0] + 1] if len(ends) else ids
