"""Charts, each with a caption and its numbers in a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from storage.pages.markup import Markup, element, visible
from storage.pages.svg import COLOURS, NUM_SERIES, WIDTH, inline_svg
from storage.pages.tables import Cell, table

_HEIGHT = 280.0
# Room that a legend needs for a line, for a letter and for a row; longer names are cut.
_HANDLE_WIDTH, _CHARACTER_WIDTH, _LEGEND_ROW_HEIGHT, _MOST_CHARACTERS = 45.0, 6.6, 15.0, 40

# Series differ by more than colour.
_DASHES: tuple[Any, ...] = ("-", "-", (0, (1.5, 1.2)), (0, (5, 2)), (0, (6, 2, 1.5, 2)), (0, (3, 1)))
_GUIDE_DASHES = (0, (2, 3))
_MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What a chart says beside its picture.

    key: its id in the page; caption: one sentence on what it shows and how to read it; columns and rows: its numbers.
    """

    key: str
    title: str
    caption: str
    x_label: str
    y_label: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line through points; low and high bound a band around it. colour: number of the series, None for a guide."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int | None
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    has_markers: bool = True


@dataclass(frozen=True, kw_only=True)
class Axes:
    """How the axes run; x_ticks: places with what stands there; from_zero: up from 0, or from a lower value."""

    from_zero: bool = True
    x_ticks: Sequence[tuple[float, str]] = ()
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None


def lines(chart: Chart, series: Sequence[Line], axes: Axes | None = None) -> Markup:
    """Lines with bands."""

    def draw(canvas: Any) -> None:
        from matplotlib.ticker import MaxNLocator

        if all(float(x).is_integer() for line in series for x in line.x):
            canvas.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
        for line in series:
            colour = COLOURS["muted" if line.colour is None else f"series{line.colour % NUM_SERIES}"]
            if line.low is not None and line.high is not None:
                canvas.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
            style = _GUIDE_DASHES if line.colour is None else _DASHES[line.colour % NUM_SERIES]
            marker = _MARKERS[(line.colour or 0) % NUM_SERIES] if line.has_markers else None
            width = 1.2 if line.colour is None else 1.8
            canvas.plot(
                line.x, line.y, color=colour, linestyle=style, linewidth=width, marker=marker, markersize=4,
                label=_short(line.name),
            )  # fmt: skip
        _set_axes(canvas, axes or Axes())
        # Above the axes, where it hides nothing.
        canvas.legend(
            loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=num_columns, borderaxespad=0.2, handlelength=2.2,
            columnspacing=1.4,
        )  # fmt: skip

    num_columns = _legend_columns([_short(line.name) for line in series])
    return _figure(chart, draw, _HEIGHT + _LEGEND_ROW_HEIGHT * (-(-len(series) // num_columns) - 1))


def histogram(chart: Chart, edges: Sequence[float], shares: Sequence[float], axes: Axes | None = None) -> Markup:
    """Columns between edges, as high as the share that falls there."""

    def draw(canvas: Any) -> None:
        from matplotlib.ticker import PercentFormatter

        canvas.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        canvas.stairs(shares, edges, fill=True, color=COLOURS["series1"], alpha=0.75, linewidth=0)
        _set_axes(canvas, axes or Axes())

    return _figure(chart, draw)


def bars(chart: Chart, names: Sequence[str], values: Sequence[float], labels: Sequence[str]) -> Markup:
    """One horizontal bar for each name, from the top, with a label at its end."""

    def draw(canvas: Any) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        places = range(len(names))
        canvas.barh(places, values, height=0.62, color=COLOURS["series1"], alpha=0.75, linewidth=0)
        for place, value, label in zip(places, values, labels, strict=True):
            canvas.annotate(label, (value, place), xytext=(4, 0), textcoords="offset points", va="center")
        canvas.set_yticks(places, [_short(name) for name in names])
        canvas.tick_params(axis="y", length=0, labelcolor=COLOURS["text"])
        canvas.invert_yaxis()
        canvas.set_xlim(0, 1.3 * max(values))
        canvas.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        canvas.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        canvas.grid(axis="y", visible=False)

    return _figure(chart, draw, height=max(90.0, 24.0 * len(names) + 56.0))


def _figure(chart: Chart, draw: Callable[[Any], None], height: float = _HEIGHT) -> Markup:
    svg = inline_svg(chart.key, chart.title, chart.caption, (chart.x_label, chart.y_label), draw, height)
    numbers = table(chart.columns, chart.rows, label=f"Numbers of: {chart.title}")
    return element(
        "figure",
        element("h3", chart.title),
        svg,
        element("figcaption", element("p", chart.caption), element("details", element("summary", "Numbers"), numbers)),
        id=chart.key,
    )


def _set_axes(canvas: Any, axes: Axes) -> None:
    if axes.from_zero and not canvas.dataLim.y0 < 0:
        canvas.set_ylim(bottom=0)
    if axes.x_ticks:
        canvas.set_xticks([at for at, _ in axes.x_ticks], [label for _, label in axes.x_ticks])
    if axes.x_range:
        canvas.set_xlim(*axes.x_range)
    if axes.y_range:
        canvas.set_ylim(*axes.y_range)


def _legend_columns(names: Sequence[str]) -> int:
    """Columns that have room beside each other."""
    return max(1, int((WIDTH - 40.0) / (_HANDLE_WIDTH + _CHARACTER_WIDTH * max(map(len, names)))))


def _short(name: str) -> str:
    name = visible(name)
    return name if len(name) <= _MOST_CHARACTERS else f"{name[: _MOST_CHARACTERS - 1]}…"
