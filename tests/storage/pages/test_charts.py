"""Charts carry their numbers, take the page's colours, and are the same bytes for the same data."""

from __future__ import annotations

import re
import sys
import warnings

import pytest

from storage.errors import MissingExtraError
from storage.pages.charts import Axes, Chart, Line, bars, histogram, lines
from storage.pages.numbers import significant
from storage.pages.page import THEME
from storage.pages.svg import require_matplotlib

NAMES = ["teacher", "<b>$x^2$</b>", "学生 🦉", "a\x1b[2J"]
X = [1.0, 2.0, 4.0]
Y = [0.25, 1 / 3, 12345.678]


def chart(key: str = "kl") -> Chart:
    return Chart(
        key=key, title="A < B", caption="What & how.", x_label="x $y_i$", y_label="nats", columns=["x", "y"],
        rows=list(zip(X, Y, strict=True)),
    )  # fmt: skip


def drawn(key: str = "kl") -> str:
    series = [Line(name=name, x=X, y=Y, colour=place, low=X, high=Y) for place, name in enumerate(NAMES)]
    return lines(chart(key), [*series, Line(name="guide", x=[1.0, 4.0], y=[0.0, 1.0], colour=None)], Axes())


def every_form() -> list[str]:
    return [
        drawn(),
        histogram(chart("h"), [0.0, 1.0, 2.0], [0.25, 0.75], Axes(x_range=(0.0, 2.0))),
        bars(chart("b"), ["ids", "logprobs"], [1e7, 0.0], ["100.0 %", "0.0 %"]),
    ]


def test_the_same_data_give_the_same_bytes() -> None:
    assert every_form() == every_form()


@pytest.mark.parametrize("form", [0, 1, 2])
def test_colours_are_the_pages_and_styles_are_attributes(form: int) -> None:
    content = every_form()[form]
    assert "style=" not in content
    assert "<style" not in content
    assert not re.search(r'"#[0-9a-f]{6}"', content)
    used = set(re.findall(r"var\(--(\w+)\)", content))
    assert used
    assert used <= THEME.keys()


def test_ids_are_of_one_chart_and_references_resolve() -> None:
    content = drawn("first") + drawn("second")
    ids = re.findall(r'\bid="([^"]+)"', content)
    assert len(ids) == len(set(ids))
    references = re.findall(r'href="#([^"]+)"', content) + re.findall(r"url\(#([^)]+)\)", content)
    assert references
    assert set(references) <= set(ids)
    assert not re.search(r"https?:", content)


def test_names_are_text_and_no_formula() -> None:
    content = drawn()
    assert "&lt;b&gt;$x^2$&lt;/b&gt;" in content
    assert "学生 🦉" in content
    assert "\x1b" not in content
    assert "x $y_i$" in content


def test_nothing_is_said_about_letters_that_a_font_lacks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn()


def test_a_picture_has_a_name_and_a_table_with_its_numbers() -> None:
    content = drawn()
    assert '<title id="kl-title">A &lt; B</title><desc id="kl-desc">What &amp; how.</desc>' in content
    assert 'role="img"' in content
    rows = re.findall(r'<tr><th scope="row">([^<]+)</th><td>([^<]+)</td></tr>', content)
    assert rows == [(significant(x), significant(y)) for x, y in zip(X, Y, strict=True)]
    assert rows[-1] == ("4", "12346")


@pytest.mark.parametrize(("x", "has_fractions"), [([10.0, 20.0, 30.0], False), ([1.0, 2.0], False), ([0.0, 0.5], True)])
def test_whole_numbers_have_whole_ticks(x: list[float], has_fractions: bool) -> None:
    content = lines(chart(), [Line(name="a", x=x, y=[1000.0 * value for value in x], colour=1)])
    ticks = re.findall(r">([\d.,]+)</text>", content)
    assert len(ticks) > 5
    assert any(not float(tick).is_integer() for tick in ticks) is has_fractions


@pytest.mark.parametrize(("y", "low"), [([-1.0, 2.0], None), ([0.5, 2.0], [-1.0, 1.0]), ([0.5, 2.0], [0.25, 1.0])])
def test_the_axis_begins_at_zero_and_cuts_nothing_below(y: list[float], low: list[float] | None) -> None:
    content = lines(chart(), [Line(name="a", x=[1.0, 2.0], y=y, colour=1, low=low, high=None if low is None else y)])
    axis = [float(label.replace("−", "-")) for label in re.findall(r">(−?[\d.]+)</text>", content)]
    assert 0.0 in axis
    assert (min(axis) < 0) == (min([*y, *(low or [])]) < 0)


def test_a_users_settings_do_not_change_a_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    expected = drawn()
    monkeypatch.setitem(matplotlib.rcParams, "lines.linewidth", 9.0)
    monkeypatch.setitem(matplotlib.rcParams, "axes.prop_cycle", matplotlib.cycler(color=["red"]))
    assert drawn() == expected
    assert matplotlib.rcParams["lines.linewidth"] == 9.0


def test_without_matplotlib_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"needs matplotlib.*\[report\]"):
        require_matplotlib()
