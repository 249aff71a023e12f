"""Tables of a report.

pandas' DataFrame.to_html writes style attributes, which the page's content security policy forbids, and no scope
attributes, which screen readers need.
"""

from __future__ import annotations

from collections.abc import Sequence

from storage.pages.markup import Markup, element, join
from storage.pages.numbers import significant

Cell = str | float | None


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, label: str, class_: str | None = None) -> Markup:
    """Return a table whose first column names its rows. Format numbers with `significant`.

    label: what the table holds, for screen readers. A table that is too wide scrolls inside its own box.
    """
    head = element("tr", *[element("th", name, scope="col") for name in columns])
    body = [
        element(
            "tr", element("th", significant(row[0]), scope="row"), *[element("td", _cell(cell)) for cell in row[1:]]
        )
        for row in rows
    ]
    inner = element("table", element("thead", head), element("tbody", *body), class_=class_)
    return element("div", inner, class_="scroll", role="region", aria_label=label, tabindex=0)


def facts(pairs: Sequence[tuple[str, Cell]]) -> Markup:
    """Return a list of names with their values."""
    return element(
        "dl",
        join(element("div", element("dt", name), element("dd", _cell(value))) for name, value in pairs),
        class_="facts",
    )


def tiles(pairs: Sequence[tuple[str, str]]) -> Markup:
    """Return a few key figures in large type, each with its name."""
    return element(
        "dl", *[element("div", element("dt", name), element("dd", figure)) for name, figure in pairs], class_="tiles"
    )


def _cell(value: Cell) -> str:
    return value if isinstance(value, Markup) else significant(value)
