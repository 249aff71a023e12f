"""Charts of the report: training, divergence and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from storage.pages.charts import Axes, Chart, Line, lines
from storage.pages.markup import Markup, join
from storage.pages.page import grid, note
from storage.pages.tables import Cell
from student.report.runs import Run
from student.report.training_log import Curve, Point

_LOSSES = {
    "soft_targets_nats": ("Loss on soft targets", "Divergence from the teacher's next-token distributions in training"),
    "soft_targets_cross_entropy_nats": (
        "Cross-entropy on soft targets",
        "From the teacher's tempered distributions, whose entropy the cache does not hold, to the student's",
    ),
    "samples_nats": ("Loss on the teacher's texts", "Next-token loss on texts that the teacher drew"),
    "beams_nats": ("Loss of choosing", "Cross-entropy from the teacher's choice among its candidates to the student's"),
    "labels_nats": ("Loss on real text", "Next-token loss on the text itself"),
}
_VALIDATION = {
    "perplexity": ("Perplexity as training went on", "perplexity"),
    "kl_nats": ("KL to the teacher as training went on", "KL, nats per token"),
}


def training_charts(runs: Sequence[Run]) -> Markup | None:
    """Return charts of the parts of the loss and of held-out measures over steps; None when no student has a log."""
    names = dict.fromkeys(name for run in runs for name in run.log.losses)
    charts = [chart for place, name in enumerate(names) for chart in _loss_charts(runs, name, f"train-{place}")]
    held_out = [chart for name in _VALIDATION for chart in _held_out_charts(runs, name)]
    return grid(*held_out, *charts) if charts or held_out else None


def _loss_charts(runs: Sequence[Run], name: str, key: str) -> list[Markup]:
    title, what = _LOSSES.get(name, (name, name))
    points = {run.name: _points(run.log.losses, name) for run in runs}
    functions = {run.name: _function_of(name, run) for run in runs}
    return _charts_over_steps(runs, points, functions, key=key, title=title, what=what, y_label="nats")


def _held_out_charts(runs: Sequence[Run], name: str) -> list[Markup]:
    """Return charts of a measure that training logged. Lower bounds and estimates have separate charts."""
    title, y_label = _VALIDATION[name]
    points = {run.name: _points(run.log.held_out, name) for run in runs}
    kinds = {run.name: "lower bound" if name == "kl_nats" and run.log.has_bounds else "estimate" for run in runs}
    what = "Held-out measure on the first blocks of the validation split"
    key = f"validation-{name.replace('_', '-')}"
    return _charts_over_steps(runs, points, kinds, key=key, title=title, what=what, y_label=y_label)


def _charts_over_steps(
    runs: Sequence[Run], points: dict[str, list[Point]], kinds: dict[str, str], *, key: str, title: str, **words: str
) -> list[Markup]:
    """Return a chart for each kind that has points. When there are several, the title names the kind."""
    shown = list(dict.fromkeys(kinds[run.name] for run in runs if points[run.name]))
    return [
        _over_steps(
            runs,
            {run.name: points[run.name] if kinds[run.name] == kind else [] for run in runs},
            key=key if place == 0 else f"{key}-{place}",
            title=title if len(shown) == 1 else f"{title}: {kind}",
            **words,
        )
        for place, kind in enumerate(shown)
    ]


def _function_of(name: str, run: Run) -> str:
    """Describe the function that a part of the loss is, by the run's settings and cache; "" when there is only one."""
    loss, temperature, chosen_at = map(run.settings.get, ("loss", "temperature", "selection_temperature"))
    if name.startswith("soft_targets_"):
        if not isinstance(temperature, (int, float)):
            return "of settings unknown"
        bound = ", a lower bound" if loss == "forward_kl" and run.log.has_bounds else ""
        return f"{loss} at temperature {temperature:g}{bound}"
    if name == "beams_nats":
        return f"the teacher at temperature {chosen_at:g}" if isinstance(chosen_at, (int, float)) else "the best alone"
    return ""


def _points(curves: dict[str, Curve], name: str) -> list[Point]:
    return curves[name].points if name in curves else []


def _over_steps(
    runs: Sequence[Run], points: dict[str, list[Point]], *, key: str, title: str, what: str, y_label: str
) -> Markup:
    is_thinned = any(point.num_values > 1 for found in points.values() for point in found)
    series = [_line(run.name, place, points[run.name]) for place, run in enumerate(runs, 1) if points[run.name]]
    rows: list[list[Cell]] = [
        [run.name, point.step, point.mean, *([point.low, point.high] if is_thinned else [])]
        for run in runs
        for point in points[run.name]
    ]
    band = " The line is the mean of neighbouring values, and the band reaches from the lowest to the highest of them."
    chart = Chart(
        key=key,
        title=title,
        caption=f"{what}; lower is better.{band if is_thinned else ''}",
        x_label="optimiser steps",
        y_label=y_label,
        columns=("student", "step", y_label, *(("lowest", "highest") if is_thinned else ())),
        rows=rows,
    )
    return lines(chart, series, Axes(from_zero=False))


def _line(name: str, colour: int, points: list[Point]) -> Line:
    is_thinned = any(point.num_values > 1 for point in points)
    return Line(
        name=name,
        x=[point.step for point in points],
        y=[point.mean for point in points],
        colour=colour,
        low=[point.low for point in points] if is_thinned else None,
        high=[point.high for point in points] if is_thinned else None,
        has_markers=len(points) < 20,
    )


def divergence_charts(runs: Sequence[Run]) -> Markup:
    """Return charts of KL by position and, where the cache knows it, by the teacher's entropy."""
    if any(run.measures["kl_by_entropy"] is None for run in runs):
        return join([grid(_by_position(runs)), note("The cache does not know the teacher's entropy.")])
    return grid(_by_position(runs), _by_entropy(runs))


def _by_position(runs: Sequence[Run]) -> Markup:
    found = {run.name: run.measures["kl_by_position"] for run in runs}
    chart = Chart(
        key="kl-by-position",
        title="KL by position",
        caption="How far the student is from the teacher after that many tokens of context; the band is two standard "
        "errors wide on each side. A rise to the right means that it makes less of long contexts.",
        x_label="position in the document's piece",
        y_label="KL, nats per token",
        columns=("student", "from", "to", "targets", "KL", "standard error"),
        rows=[
            [name, b["first_position"], b["last_position"], b["num_targets"], b["kl_nats"], b["kl_standard_error"]]
            for name, bins in found.items()
            for b in bins
        ],
    )
    places = sorted({(b["first_position"], b["last_position"]) for bins in found.values() for b in bins})
    x_of = {span: float(x) for x, span in enumerate(places)}
    series = [
        _binned(run.name, place, bins, [x_of[b["first_position"], b["last_position"]] for b in bins])
        for place, run in enumerate(runs, 1)
        for bins in [found[run.name]]
    ]
    ticks = [(x, str(first)) for (first, _), x in x_of.items()]
    return lines(chart, series, Axes(x_ticks=ticks))


def _by_entropy(runs: Sequence[Run]) -> Markup:
    found = {run.name: run.measures["kl_by_entropy"] for run in runs}
    chart = Chart(
        key="kl-by-entropy",
        title="KL by the teacher's entropy",
        caption="Left the teacher is sure of the next token, right it is guessing: where along it the student falls "
        "behind. The band is two standard errors wide on each side.",
        x_label="teacher's entropy, nats",
        y_label="KL, nats per token",
        columns=("student", "from, nats", "to, nats", "targets", "KL", "standard error"),
        rows=[
            [name, b["low_nats"], b["high_nats"], b["num_targets"], b["kl_nats"], b["kl_standard_error"]]
            for name, bins in found.items()
            for b in bins
        ],
    )
    series = [
        _binned(run.name, place, bins, [(b["low_nats"] + b["high_nats"]) / 2 for b in bins])
        for place, run in enumerate(runs, 1)
        for bins in [found[run.name]]
    ]
    return lines(chart, series)


def _binned(name: str, colour: int, bins: list[dict[str, Any]], x: list[float]) -> Line:
    kl = [float(b["kl_nats"]) for b in bins]
    errors = [2 * (b["kl_standard_error"] or 0.0) for b in bins]
    return Line(
        name=name,
        x=x,
        y=kl,
        colour=colour,
        low=[value - error for value, error in zip(kl, errors, strict=True)],
        high=[value + error for value, error in zip(kl, errors, strict=True)],
    )


def calibration_charts(runs: Sequence[Run]) -> Markup:
    """Return the reliability diagram of the teacher and every student (Guo et al. 2017)."""
    sides = {"teacher": (runs[0].measures["calibration"] or {}).get("teacher")} | {
        run.name: (run.measures["calibration"] or {}).get("student") for run in runs
    }
    found = [(name, side["bins"]) for name, side in sides.items() if side]
    chart = Chart(
        key="reliability",
        title="Can its confidence be trusted?",
        caption="How often the most probable token is the real one, against how sure the model was of it. On the "
        "dotted line confidence is right; below it the model is too sure of itself.",
        x_label="confidence",
        y_label="share that was right",
        columns=("model", "from", "to", "targets", "mean confidence", "right"),
        rows=[
            [name, b["low"], b["high"], b["num_targets"], b["mean_confidence"], b["accuracy"]]
            for name, bins in found
            for b in bins
        ],
    )
    colours = {name: place for place, name in enumerate(sides)}
    series = [
        Line(
            name=name,
            x=[b["mean_confidence"] for b in bins],
            y=[b["accuracy"] for b in bins],
            colour=colours[name],
        )
        for name, bins in found
    ]
    guide = Line(name="perfect", x=[0.0, 1.0], y=[0.0, 1.0], colour=None, has_markers=False)
    return grid(lines(chart, [*series, guide], Axes(x_range=(0.0, 1.0), y_range=(0.0, 1.0))))
