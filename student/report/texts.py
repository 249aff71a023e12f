"""Texts for the same held-out prompts by the teacher (from the cache) and each student, and how varied they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from storage.pages.markup import Markup, element, join
from storage.pages.numbers import ABSENT, decimal, interval, percent, share_interval
from storage.pages.page import note, quotation
from storage.pages.tables import Cell, table
from storage.reading.cache import Cache
from student.evaluation.continuations import SamplingSettings, choose_prompts, continue_prompts, without_end
from student.report.runs import Run, TextOf

_NUM_PROMPTS = 4
# Key of a figure, its name on the page, and whether it is a share, to show in percent.
_FIGURES = (
    ("distinct_1", "Different tokens", True),
    ("distinct_2", "Different token pairs", True),
    ("distinct_3", "Different triples", True),
    ("self_bleu", "Self-BLEU", True),
    ("repetition_rate", "Repetition inside a text", True),
    ("vocabulary_coverage", "Vocabulary used", True),
    ("mean_length_tokens", "Length, tokens", False),
)


@dataclass(frozen=True, kw_only=True)
class Continuations:
    """A prompt with the teacher's text and each student's."""

    prompt: str
    teacher: str
    students: list[str]


def continue_some_prompts(models: Sequence[Any], cache: Cache, text_of: TextOf) -> list[Continuations]:
    """Draw one text per student for a few held-out prompts, with the cache's sampling settings; [] without samples."""
    if not cache.num_rows("samples", "validation"):
        return []
    settings = SamplingSettings.of_cache(cache)
    rows = [of_prompt[0] for of_prompt in choose_prompts(cache, _NUM_PROMPTS)]
    texts = [continue_prompts(model, rows, settings) for model in models]
    return [
        Continuations(
            prompt=text_of((), row.prompt_ids),
            teacher=row.text,
            students=[text_of(row.prompt_ids, without_end(of_model[place], settings.end_ids)) for of_model in texts],
        )
        for place, row in enumerate(rows)
    ]


def texts_view(found: Sequence[Continuations], names: Sequence[str]) -> Markup:
    """Return each prompt with all texts side by side."""
    return join(
        element(
            "div",
            quotation(item.prompt),
            element(
                "div",
                *[
                    element("div", element("h3", name), element("p", text or "∅", class_="text"))
                    for name, text in zip(["teacher", *names], [item.teacher, *item.students], strict=True)
                ],
                class_="columns",
            ),
            class_="ranked",
        )
        for item in found
    )


def variety_table(runs: Sequence[Run]) -> Markup | None:
    """Return a table of how varied the texts of teacher and students are; None when no texts were drawn."""
    measured = [run for run in runs if run.measures["generation"]]
    if not measured:
        return None
    teacher = measured[0].measures["generation"]["teacher"]
    sides = [teacher, *[run.measures["generation"]["student"] for run in measured]]
    rows: list[list[Cell]] = [
        [label, *[_figure(side, name, is_share) for side in sides]] for name, label, is_share in _FIGURES
    ]
    explanation = note(
        f"From {teacher['num_texts']} texts of each for the same prompts, drawn alike. More different tokens, pairs "
        "and triples (distinct-1, 2, 3), a lower self-BLEU and less repetition (of four tokens in a row) mean "
        "more varied texts. All but repetition and length depend on the number of texts: compare them within "
        "this table alone."
    )
    columns = [Markup("Texts"), "teacher", *[run.name for run in measured]]
    return join([table(columns, rows, label="How varied the texts are", class_="models"), explanation])


def _figure(side: dict[str, Any], name: str, is_share: bool) -> Cell:
    value, ends = side[name], side.get(f"{name}_interval")
    if value is None:
        return ABSENT
    figure = percent(value) if is_share else decimal(value, 1)
    if ends is None:
        return figure
    shown = share_interval(ends) if is_share else interval(ends, 1)
    return join([figure, element("small", shown)])
