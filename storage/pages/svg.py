"""matplotlib's drawings as inline SVG whose colours are the page's.

Colours are stand-ins that become the page's custom properties, so that a chart follows light and dark by itself.
Styles become attributes, because the page's policy allows no style but its own sheet. matplotlib has no
setting for either.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

from storage.errors import MissingExtraError
from storage.pages.markup import Markup, element

NUM_SERIES = 6
# Widths and heights are in the units of the SVG, which are about CSS pixels.
WIDTH = 420.0
_FONT_SIZE = 11.0
_UNITS_PER_INCH = 72.0
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_NUMBERS = ("d", "transform", "x", "y", "width", "height", "stroke-width")

# Stand-ins for the page's colours: what matplotlib writes for them, and the name that takes their place.
COLOURS = {name: f"#0000{number:02x}" for number, name in enumerate(("text", "muted", "line", "ground"), 1)} | {
    f"series{number}": f"#0001{number:02x}" for number in range(NUM_SERIES)
}
_NAMES = {colour: name for name, colour in COLOURS.items()}


def require_matplotlib() -> None:
    """Raise MissingExtraError where charts cannot be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("a report", "matplotlib", "report") from error


def inline_svg(
    key: str, title: str, description: str, labels: tuple[str, str], draw: Callable[[Any], None], height: float
) -> Markup:
    """What `draw` puts on matplotlib axes with labels of x and y, the same bytes for the same drawing.

    key: begins every id in it; title and description: for who does not see it.
    """
    return _themed(_drawn(key, labels, draw, height), key, title, description)


def _drawn(key: str, labels: tuple[str, str], draw: Callable[[Any], None], height: float) -> bytes:
    """matplotlib's SVG, the same bytes for the same data."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's own file says
        matplotlib.rcParams.update(_SETTINGS | {"svg.hashsalt": key})
        figure = Figure(figsize=(WIDTH / _UNITS_PER_INCH, height / _UNITS_PER_INCH), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        draw(axes)
        content = io.BytesIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of letters that its own font lacks: the reader's has them
            figure.savefig(content, format="svg", metadata=metadata)
    return content.getvalue()


_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "figure.dpi": _UNITS_PER_INCH,
    "savefig.dpi": _UNITS_PER_INCH,
    "savefig.transparent": True,
    "font.family": "DejaVu Sans",
    "font.size": _FONT_SIZE,
    "axes.labelsize": _FONT_SIZE,
    "legend.fontsize": _FONT_SIZE,
    "xtick.labelsize": _FONT_SIZE,
    "ytick.labelsize": _FONT_SIZE,
    "text.color": COLOURS["text"],
    "text.parse_math": False,
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.8,
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "legend.frameon": False,
}


def _themed(content: bytes, key: str, title: str, description: str) -> Markup:
    """matplotlib's SVG with the page's colours, without styles, and with ids that no other chart of the page has."""
    root = ElementTree.fromstring(content)
    for defs in list(root.iter(f"{_SVG}defs")):
        for style in defs.findall(f"{_SVG}style"):
            defs.remove(style)
    used = set(re.findall(rb'(?:url\(|xlink:href=")#([^")]+)', content))
    names = {name.decode(): f"{key}-{number}" for number, name in enumerate(sorted(used))}
    for part in root.iter():
        _rewrite(part, names)
    width, height = (float(value) for value in root.attrib.pop("viewBox").split()[2:])
    inner = "".join(ElementTree.tostring(child, encoding="unicode", short_empty_elements=False) for child in root)
    title_id, description_id = f"{key}-title", f"{key}-desc"
    return element(
        "svg",
        element("title", title, id=title_id),
        element("desc", description, id=description_id),
        Markup(inner),
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        stroke_linejoin="round",
        stroke_linecap="butt",
        aria_labelledby=f"{title_id} {description_id}",
    )


def _rewrite(part: ElementTree.Element, names: dict[str, str]) -> None:
    """One element: plain HTML names, styles as attributes, colours of the page, few digits, few ids."""
    part.tag = part.tag.removeprefix(_SVG)
    part.text = part.text if part.text and part.text.strip() else None
    part.tail = None
    found = dict(part.attrib)
    part.attrib.clear()
    styles = dict(_declaration(item) for item in found.pop("style", "").split(";") if item.strip())
    for name, value in {**found, **_without_font(styles)}.items():
        name = name.removeprefix(_XLINK)
        if name == "id":
            if value in names:
                part.set("id", names[value])
            continue
        if name == "font-family" or value.startswith("rotate(-0 "):
            continue
        value = re.sub(r"#(\w+)(?=\)|$)", lambda hit: f"#{names[hit[1]]}" if hit[1] in names else hit[0], value)
        if name in _NUMBERS:
            value = re.sub(r"-?\d+\.\d+", lambda hit: f"{round(float(hit[0]), 2) + 0.0:g}", value)
        part.set(name, _coloured(value))


def _declaration(item: str) -> tuple[str, str]:
    name, _, value = item.partition(":")
    return name.strip(), value.strip()


def _without_font(styles: dict[str, str]) -> dict[str, str]:
    """The page chooses the font; its size stays."""
    font = styles.pop("font", None)
    if font is not None:
        styles["font-size"] = f"{float(re.search(r'([0-9.]+)px', font)[1]):g}"  # type: ignore[index]
    return styles


def _coloured(value: str) -> str:
    if re.fullmatch(r"#[0-9a-f]{6}", value):
        return f"var(--{_NAMES[value]})"
    return value
