"""Tables of a report.

pandas' DataFrame.to_html writes style attributes, which the page's policy forbids, and no scopes for screen readers.
"""

from __future__ import annotations

from collections.abc import Sequence

from storage.pages.markup import Markup, element, join
from storage.pages.numbers import significant

Cell = str | float | None


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, label: str, class_: str | None = None) -> Markup:
    """A table whose first column names its rows; numbers are written by `significant`.

    label: what it holds, for who does not see it. A table that is too wide scrolls inside itself.
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
    """Names with their values."""
    return element(
        "dl",
        join(element("div", element("dt", name), element("dd", _cell(value))) for name, value in pairs),
        class_="facts",
    )


def tiles(pairs: Sequence[tuple[str, str]]) -> Markup:
    """A few key figures, large, with what they are."""
    return element(
        "dl", *[element("div", element("dt", name), element("dd", figure)) for name, figure in pairs], class_="tiles"
    )


def _cell(value: Cell) -> str:
    return value if isinstance(value, Markup) else significant(value)
