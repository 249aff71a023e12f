"""Some prompts with the teacher's candidates, ranked by the teacher and by each student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from storage.pages.markup import Markup, element, join, one_line
from storage.pages.page import note, quotation
from storage.pages.tables import table
from storage.reading.cache import Cache
from storage.report.cache_rows import spread
from storage.rows import beams
from student.losses.batches import beam_batch
from student.losses.scores import candidate_scores
from student.model.architecture import num_vocabulary_rows
from student.report.runs import TextOf

_NUM_PROMPTS = 4


@dataclass(frozen=True, kw_only=True)
class RankedPrompt:
    """A prompt with its candidates in the teacher's order.

    teacher_scores: nats, one per candidate; student_scores: nats, the same for each student.
    """

    prompt: str
    texts: list[str]
    teacher_scores: list[float]
    student_scores: list[list[float]]


@torch.inference_mode()
def rank_some_prompts(models: Sequence[Any], cache: Cache, text_of: TextOf) -> list[RankedPrompt]:
    """Rank a few prompts, spread over the first record batch of the validation split; return [] without prompts."""
    if not cache.num_rows("beams", "validation"):
        return []
    batch = next(cache.record_batches("beams", "validation"))
    rows = beams.decode(batch)
    chosen = spread([place for place, row in enumerate(rows) if len(row.candidates) > 1], _NUM_PROMPTS)
    length_penalty = float(cache.setting("config", "beams", "length_penalty"))
    return [
        RankedPrompt(
            prompt=text_of((), rows[place].prompt_ids),
            texts=[candidate.text for candidate in rows[place].candidates],
            teacher_scores=[candidate.score for candidate in rows[place].candidates],
            student_scores=[
                candidate_scores(
                    model, beam_batch(batch.slice(place, 1), model.device, num_vocabulary_rows(model)), length_penalty
                )[0].tolist()
                for model in models
            ],
        )
        for place in chosen
    ]


def candidates_view(prompts: Sequence[RankedPrompt], names: Sequence[str]) -> Markup:
    """Return a table for each prompt."""
    explanation = note(
        "Candidates of held-out prompts in the teacher's order. A figure is a score in nats, the higher the better; "
        "under a student's score stands the place that it gives the candidate, and how far that is from the teacher's."
    )
    return join([explanation, *[_one_prompt(prompt, names) for prompt in prompts]])


def _one_prompt(ranked: RankedPrompt, names: Sequence[str]) -> Markup:
    orders = [places(scores) for scores in ranked.student_scores]
    rows = [
        [
            element("span", one_line(text), class_="text"),
            join([f"{ranked.teacher_scores[c]:.3f}", element("small", f"place {c + 1}")]),
            *[
                join([f"{scores[c]:.3f}", _place(order[c], c + 1)])
                for scores, order in zip(ranked.student_scores, orders, strict=True)
            ],
        ]
        for c, text in enumerate(ranked.texts)
    ]
    inner = table(["Candidate", "teacher", *names], rows, label="Candidates with both rankings", class_="candidates")
    return element("div", quotation(ranked.prompt), inner, class_="ranked")


def places(scores: Sequence[float]) -> list[int]:
    """Return the rank of each score, 1 for the highest. Equal scores keep their order."""
    order = sorted(range(len(scores)), key=lambda c: -scores[c])
    found = [0] * len(scores)
    for place, c in enumerate(order, 1):
        found[c] = place
    return found


def _place(place: int, teachers_place: int) -> Markup:
    moved = teachers_place - place
    if moved == 0:
        return element("small", f"place {place}")
    return element("small", f"place {place}, {'up' if moved > 0 else 'down'} {abs(moved)}", class_="moved")
