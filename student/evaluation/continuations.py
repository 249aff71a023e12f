"""Choose held-out prompts that the teacher continued, and continue them with the student."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.draws import hash_u64
from storage.progress import Progress
from storage.reading.cache import Cache
from storage.rows.samples import SampleRow, decode
from student.losses.batches import require_rows
from student.model.architecture import num_vocabulary_rows
from student.token_loop import collect_texts, draw_tokens

_CHOICE_SEED = 22
# Largest number of texts per prompt that are measured, even if a cache holds more.
_TEXTS_PER_PROMPT = 8
_BATCH_TOKENS = 8192


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How a cache's samples were drawn. end_ids: () if no text ends before max_new_tokens."""

    temperature: float
    top_p: float
    max_new_tokens: int
    end_ids: tuple[int, ...]

    @classmethod
    def of_cache(cls, cache: Cache) -> SamplingSettings:
        """Return the settings of a cache that holds samples; raise RecordError when it does not state them."""
        cache.setting("tokenizer", "eos_token_id")
        return cls(
            temperature=float(cache.setting("config", "samples", "temperature")),
            top_p=float(cache.setting("config", "samples", "top_p")),
            max_new_tokens=cache.setting("config", "samples", "max_new_tokens"),
            end_ids=cache.identity.end_ids,
        )


def choose_prompts(cache: Cache, num_prompts: int) -> list[list[SampleRow]]:
    """Return the samples of `num_prompts` prompts of the validation split, at most 8 per prompt.

    A fixed seed decides which prompts are chosen and in which order. If there are fewer prompts, return all.

    Choose at most one of the prompts whose first samples have the same seed. The sources of a merged cache each count
    rows from 0, so prompts of different sources can have equal seeds. Texts drawn with equal seeds would seem less
    varied than they are.
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
    """Return the token ids of the student's text for each row's prompt, with the end id if it drew one.

    Draw with the row's seed, as the teacher's text was drawn: a student that equals its teacher writes the same texts,
    and a difference is not chance alone. Prompts of similar length share a batch of at most batch_tokens tokens, or of
    one text. The size of a batch changes a text only where a rounding difference changes which token is drawn.

    Raise BrokenStudentError when logits are not finite, and MissingRowError.
    """
    texts: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)] * len(rows)
    with Progress(len(rows), "continue", "texts", quiet=quiet) as bar:
        for places in _batches(rows, settings.max_new_tokens, batch_tokens):
            for place, text in zip(places, _continue(model, [rows[p] for p in places], settings), strict=True):
                texts[place] = text
            bar.update(len(places))
    return texts


def without_end(completion_ids: NDArray[Any], end_ids: Collection[int]) -> NDArray[Any]:
    """Return a text's ids without the end id at its end, if there is one."""
    return completion_ids[:-1] if completion_ids[-1] in end_ids else completion_ids


def prompt_key(row: SampleRow) -> tuple[int, bytes]:
    """Return what the texts of one prompt have in common.

    Tell prompts apart by their tokens too: the sources of a merged cache each count prompts from 0.
    """
    return row.prompt_id, row.prompt_ids.tobytes()


def _keyed_prompts(cache: Cache) -> Iterator[tuple[int, list[SampleRow]]]:
    """Yield each prompt's rows with the key that decides its place in the fixed order."""
    for number, rows in enumerate(_prompts(cache)):
        yield int(hash_u64(_CHOICE_SEED, number)), rows


def _prompts(cache: Cache) -> Iterator[list[SampleRow]]:
    """Yield the first rows of each prompt."""
    rows = (row for batch in cache.record_batches("samples", "validation") for row in decode(batch))
    for _, group in itertools.groupby(rows, key=prompt_key):
        yield list(itertools.islice(group, _TEXTS_PER_PROMPT))


def _batches(rows: list[SampleRow], max_new_tokens: int, batch_tokens: int) -> Iterator[list[int]]:
    """Yield the indices of the rows of each batch, with prompts of similar length together, the longest first."""
    order = sorted(range(len(rows)), key=lambda place: len(rows[place].prompt_ids))
    while order:
        longest = len(rows[order[-1]].prompt_ids) + max_new_tokens
        size = max(1, batch_tokens // longest)
        order, places = order[:-size], order[-size:]
        yield places


def _continue(model: Any, rows: list[SampleRow], settings: SamplingSettings) -> list[NDArray[np.int64]]:
    """Return the texts of one batch."""
    for row in rows:
        require_rows(row.prompt_ids, num_vocabulary_rows(model))
    prompts, seeds = [row.prompt_ids for row in rows], [row.seed for row in rows]
    steps = draw_tokens(model, prompts, seeds, temperature=settings.temperature, top_p=settings.top_p)
    texts = collect_texts(itertools.islice(steps, settings.max_new_tokens), settings.end_ids)
    return [np.array(ids, dtype=np.int64) for ids in texts]
