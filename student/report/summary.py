"""The sentences of a report, made from the numbers, whether good or bad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from storage.pages.markup import Markup, element
from storage.pages.numbers import ABSENT, count, decimal, percent, size
from storage.pages.tables import tiles
from student.report.runs import Run

# Words for the ratio of the student's perplexity to the teacher's, each up to its ratio.
_VERDICTS = (
    (1.02, "about as well as its teacher"),
    (1.15, "nearly as well as its teacher"),
    (1.5, "noticeably worse than its teacher"),
    (3.0, "clearly worse than its teacher"),
)
# A ratio that differs from 1 by less than this counts as 1.
_ALIKE = 0.005
_WORST_VERDICT = "far worse than its teacher"


def sentences(run: Run, teacher: dict[str, Any]) -> list[str]:
    """Return sentences about one student: size, prediction, divergence, selection, drafts and variety of texts."""
    measures = run.measures
    return [
        sentence
        for sentence in (
            _size(run, teacher),
            _prediction(measures),
            _divergence(measures),
            _selection(measures),
            _speculation(measures),
            _diversity(measures.get("generation")),
        )
        if sentence
    ]


def comparison(run: Run, baseline: Run) -> str | None:
    """Compare a student with one trained on plain text alone; None when the KL of one was not measured."""
    kl, other = run.measures["kl_nats"], baseline.measures["kl_nats"]
    if kl is None or other is None:
        return None
    ends, other_ends = run.measures.get("kl_nats_interval"), baseline.measures.get("kl_nats_interval")
    reference = f"{baseline.name}, which saw the plain text alone and nothing that the teacher said"
    figures = f"KL {kl:.3f} against {other:.3f} nats per token, perplexity {run.measures['perplexity']:.1f} against "
    figures += f"{baseline.measures['perplexity']:.1f}"
    if ends and other_ends and ends[0] <= other_ends[1] and other_ends[0] <= ends[1]:
        return f"Compared with {reference}, no clear difference can be told: {figures}; the intervals overlap."
    if kl < other:
        return (
            f"Compared with {reference}, {run.name} is {percent(1 - kl / other, 0)} closer to the teacher: {figures}."
        )
    return f"Compared with {reference}, {run.name} is not closer to the teacher but farther: {figures}."


def _size(run: Run, teacher: dict[str, Any]) -> str:
    parameters, num_bytes = run.measures["num_parameters"], run.measures["model_bytes"]
    teachers, teacher_bytes = teacher["num_parameters"], teacher.get("weights_bytes")
    text = f"{run.name} has {count(parameters)} parameters"
    if teachers:
        text += f", {percent(parameters / teachers)} of the teacher's {count(teachers)}"
    text += f", and takes {size(num_bytes)}"
    if isinstance(teacher_bytes, int) and teacher_bytes > 0 and num_bytes:
        ratio = teacher_bytes / num_bytes
        if 1 / 1.05 < ratio < 1.05:
            text += ", as much as the teacher"
        else:
            text += f", {ratio:.1f} times less than the teacher" if ratio > 1 else f", {1 / ratio:.1f} times as much"
    return f"{text}."


def _prediction(measures: dict[str, Any]) -> str | None:
    perplexity, teachers = measures["perplexity"], measures["teacher_perplexity"]
    if perplexity is None:
        return None
    if teachers is None:
        return (
            f"On held-out text its perplexity is {decimal(perplexity, 1)}; "
            "the cache does not know the teacher's probabilities of that text."
        )
    ratio = perplexity / teachers
    verdict = next((words for most, words in _VERDICTS if ratio <= most), _WORST_VERDICT)
    is_alike = abs(ratio - 1) < _ALIKE
    is_better = ratio < 1 and not is_alike
    lead = f"On held-out text it {'predicts better than its teacher' if is_better else f'does {verdict}'}"
    change = "as high" if is_alike else f"{percent(abs(ratio - 1), 0)} {'higher' if ratio > 1 else 'lower'}"
    return f"{lead}: its perplexity is {decimal(perplexity, 1)}, the teacher's {decimal(teachers, 1)} ({change})."


def _divergence(measures: dict[str, Any]) -> str | None:
    if measures["kl_nats"] is None:
        return None
    bound = "at least " if measures["kl_is_lower_bound"] else ""
    kl_nats = round(measures["kl_nats"], 3) + 0.0  # no −0
    text = f"It lost {bound}{decimal(kl_nats, 3)} nats per token of what the teacher says (KL)"
    if measures["top1_agreement"] is not None:
        text += f" and names the teacher's first choice at {percent(measures['top1_agreement'], 0)} of positions"
    return f"{text}."


def _selection(measures: dict[str, Any]) -> str | None:
    accuracy, chance = measures["selection_accuracy"], measures["selection_chance"]
    if accuracy is None:
        return None
    text = (
        f"Of the teacher's candidates it picks the best for {percent(accuracy, 0)} of {measures['num_selections']} "
        f"prompts; guessing would for {percent(chance, 0)}"
    )
    ends = measures.get("selection_accuracy_interval")
    may_be_chance = ends is None or ends[0] <= chance <= ends[1]
    return f"{text}, from which these prompts cannot tell it." if may_be_chance else f"{text}."


def _speculation(measures: dict[str, Any]) -> str | None:
    if measures["acceptance"] is None:
        return None
    text = f"As a draft model it has {percent(measures['acceptance'], 0)} of its tokens accepted by the teacher"
    tokens = measures["tokens_per_teacher_step"]
    return f"{text}." if tokens is None else f"{text}, {decimal(tokens, 1)} tokens per step with drafts of 4."


def _diversity(generation: dict[str, Any] | None) -> str | None:
    """Say whether its texts are less varied than the teacher's, by distinct bigrams."""
    if not generation:
        return None
    student, teacher = generation["student"]["distinct_2"], generation["teacher"]["distinct_2"]
    if student is None or teacher is None:
        return None
    ends, teacher_ends = (generation[side].get("distinct_2_interval") for side in ("student", "teacher"))
    figures = f"{percent(student, 0)} of its token pairs are different ones, {percent(teacher, 0)} of the teacher's"
    if not ends or not teacher_ends:
        return f"How varied its own texts are beside the teacher's, these few cannot tell: {figures}."
    if ends[0] <= teacher_ends[1] and teacher_ends[0] <= ends[1]:
        return f"Its own texts are about as varied as the teacher's: {figures}."
    return f"Its own texts are {'less' if student < teacher else 'more'} varied than the teacher's: {figures}."


def told_about(runs: Sequence[Run]) -> list[Run]:
    """Return the students that the summary is about: all except baselines, or all when there are only baselines."""
    return [run for run in runs if not run.is_baseline] or list(runs)


def summary_view(runs: Sequence[Run], teacher: dict[str, Any]) -> Markup:
    """Return the first student's key figures and sentences. The sentences about other students are folded."""
    told, baselines = told_about(runs), [run for run in runs if run.is_baseline]
    parts: list[Markup] = [_tiles(told[0], teacher)]
    for run in told:
        compared = [comparison(run, baseline) for baseline in baselines if baseline is not run]
        found = sentences(run, teacher) + [text for text in compared if text]
        listed = element("ul", *[element("li", text) for text in found])
        parts.append(listed if run is told[0] else element("details", element("summary", run.name), listed))
    return element("div", *parts, class_="summary")


def _tiles(run: Run, teacher: dict[str, Any]) -> Markup:
    measures = run.measures
    share = measures["num_parameters"] / teacher["num_parameters"] if teacher["num_parameters"] else None
    figures = [
        ("Parameters, of the teacher's", percent(share)),
        ("Size of the weights", size(measures["model_bytes"])),
        ("Perplexity, student / teacher", _pair(measures)),
        ("Same first choice", percent(measures["top1_agreement"], 0)),
    ]
    return tiles(figures)


def _pair(measures: dict[str, Any]) -> str:
    if measures["perplexity"] is None:
        return ABSENT
    return f"{decimal(measures['perplexity'], 1)} / {decimal(measures['teacher_perplexity'], 1)}"
