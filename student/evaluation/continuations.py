"""The held-out prompts that the teacher continued, and the student's continuations of them."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.draws import hash_u64
from storage.progress import Progress
from storage.reading.cache import Cache
from storage.rows.samples import SampleRow, decode
from student.token_loop import collect_texts, draw_tokens

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


def continue_prompts(
    model: Any,
    rows: list[SampleRow],
    settings: SamplingSettings,
    *,
    batch_tokens: int = _BATCH_TOKENS,
    quiet: bool = True,
) -> list[NDArray[np.int64]]:
    """The student's text for each row's prompt, with the end-of-text token where it came to one.

    It is drawn by the row's seed, as the teacher's text was: a student that equals its teacher writes the same texts,
    and what differs is not chance alone. Prompts of like length share a batch; its size changes texts only where
    rounding meets the edge of a draw. Raises BrokenStudentError for logits that are not finite.
    """
    texts: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)] * len(rows)
    with Progress(len(rows), "continue", "texts", quiet=quiet) as bar:
        for places in _batches(rows, settings.max_new_tokens, batch_tokens):
            for place, text in zip(places, _continue(model, [rows[p] for p in places], settings), strict=True):
                texts[place] = text
            bar.update(len(places))
    return texts


def without_end(completion_ids: NDArray[Any], eos_token_id: int | None) -> NDArray[Any]:
    """A text's ids without the end-of-text token that it may end with."""
    return completion_ids[:-1] if completion_ids[-1] == eos_token_id else completion_ids


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


def _continue(model: Any, rows: list[SampleRow], settings: SamplingSettings) -> list[NDArray[np.int64]]:
    """Texts of one batch."""
    prompts, seeds = [row.prompt_ids for row in rows], [row.seed for row in rows]
    steps = draw_tokens(model, prompts, seeds, temperature=settings.temperature, top_p=settings.top_p)
    texts = collect_texts(itertools.islice(steps, settings.max_new_tokens), settings.eos_token_id)
    return [np.array(ids, dtype=np.int64) for ids in texts]
