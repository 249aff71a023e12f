"""The table at the top: teacher and students side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from storage.pages.markup import Markup, element, join
from storage.pages.numbers import ABSENT, decimal, interval, percent, share_interval, size, whole
from storage.pages.page import note
from storage.pages.tables import Cell, table
from student.report.runs import Run


def headline(runs: Sequence[Run], teacher: dict[str, Any], machine: str) -> Markup:
    """Return a table with a row per measure and a column for the teacher and for each student.

    machine: the machine on which speed was measured, in words.
    """
    first = runs[0].measures
    notes = _notes(first, machine)
    marks = {name: str(number) for number, name in enumerate(notes, 1)}
    rows: list[list[Cell]] = [
        ["Parameters", whole(teacher["num_parameters"] or None), *[_parameters(run, teacher) for run in runs]],
        ["Weights", size(teacher.get("weights_bytes")), *[size(run.measures["model_bytes"]) for run in runs]],
        [_marked("Tokens/s, batch 1", marks), ABSENT, *[decimal(run.tokens_per_second, 0) for run in runs]],
        [
            "Perplexity",
            _bounded(first, "teacher_perplexity", 1),
            *[_bounded(r.measures, "perplexity", 1) for r in runs],
        ],
        [_marked("KL, nats/token", marks), ABSENT, *[_bounded(run.measures, "kl_nats", 3) for run in runs]],
        ["Top-1 agreement", ABSENT, *[_share(run.measures, "top1_agreement") for run in runs]],
        ["Top-5 agreement", ABSENT, *[_share(run.measures, "top5_agreement") for run in runs]],
        ["Calibration error", _error(first, "teacher"), *[_error(run.measures, "student") for run in runs]],
        [_marked("Best candidate picked", marks), ABSENT, *[_share(r.measures, "selection_accuracy") for r in runs]],
        ["Mean reciprocal rank", ABSENT, *[_bounded(run.measures, "mean_reciprocal_rank", 2) for run in runs]],
        ["Kendall's tau", ABSENT, *[_bounded(run.measures, "kendall_tau", 2) for run in runs]],
        [_marked("Drafts accepted", marks), ABSENT, *[_share(run.measures, "acceptance") for run in runs]],
        ["Tokens per teacher step", ABSENT, *[_bounded(run.measures, "tokens_per_teacher_step", 2) for run in runs]],
    ]
    columns = [Markup("Held-out text"), "teacher", *[_column(run) for run in runs]]
    small = "Small print under a figure is its 95 % interval, from resampling blocks or prompts."
    footnotes = [join([element("sup", marks[name]), " ", text]) for name, text in notes.items()]
    return join(
        [
            table(columns, rows, label="Teacher and students side by side", class_="models"),
            *[note(text) for text in [*footnotes, small]],
        ]
    )


def _column(run: Run) -> str:
    return join([run.name, element("small", "plain text alone")]) if run.is_baseline else run.name


def _marked(name: str, marks: dict[str, str]) -> str:
    return join([name, " ", element("sup", marks[name])]) if name in marks else name


def _parameters(run: Run, teacher: dict[str, Any]) -> Cell:
    own, teachers = run.measures["num_parameters"], teacher["num_parameters"]
    trained = run.settings.get("num_trained_parameters")  # of adapters, which others are without
    notes = [percent(own / teachers)] if teachers else []
    notes += [f"{whole(trained)} trained"] if isinstance(trained, int) else []
    return _with_small(whole(own), ", ".join(notes) or None)


def _bounded(measures: dict[str, Any], name: str, digits: int) -> Cell:
    ends = measures.get(f"{name}_interval")
    return _with_small(decimal(measures[name], digits), None if ends is None else interval(ends, digits))


def _share(measures: dict[str, Any], name: str) -> Cell:
    ends = measures.get(f"{name}_interval")
    shown = None if ends is None else share_interval(ends, 0)
    return _with_small(percent(measures[name], 0), shown)


def _error(measures: dict[str, Any], side: str) -> Cell:
    found = (measures.get("calibration") or {}).get(side)
    return percent(found["expected_calibration_error"]) if found else ABSENT


def _with_small(figure: str, small: str | None) -> Markup:
    return join([figure, None if small is None else element("small", small)])


def _notes(measures: dict[str, Any], machine: str) -> dict[str, str]:
    """Return the footnotes by the name of their row."""
    speed = f"Measured for this page on {machine}, one text at a time. The teacher is not here, so it has no figure."
    notes = {
        "Tokens/s, batch 1": speed,
        "KL, nats/token": _about_kl(measures),
        "Best candidate picked": _about_selection(measures),
        "Drafts accepted": _about_acceptance(measures),
    }
    return {name: text for name, text in notes.items() if text is not None}


def _about_kl(measures: dict[str, Any]) -> str | None:
    if measures["kl_nats"] is None:
        return None
    kind = "A lower bound of" if measures["kl_is_lower_bound"] else "An unbiased estimate of"
    return (
        f"{kind} how far the student's next-token distribution is from the teacher's, over "
        f"{whole(measures['num_targets'])} held-out positions; 0 would be the same distribution."
    )


def _about_selection(measures: dict[str, Any]) -> str | None:
    if measures["selection_chance"] is None:
        return None
    return (
        f"Of {measures['num_selections']} held-out prompts, those where the student scores the teacher's best "
        f"candidate highest; guessing would reach {percent(measures['selection_chance'], 0)}."
    )


def _about_acceptance(measures: dict[str, Any]) -> str | None:
    if measures["no_acceptance_because"]:
        return f"Not known, for {measures['no_acceptance_because']}."
    if measures["acceptance"] is None:
        return None
    return (
        "Of the tokens that the student would draft in speculative decoding, those that the teacher would accept, over "
        f"{whole(measures['num_sampled_tokens'])} tokens of held-out texts by the teacher. With drafts of 4, a step of "
        "the teacher gives the tokens of the row below; 5 at most."
    )
