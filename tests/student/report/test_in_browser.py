"""Both reports as a reader sees them: light and dark, at a desk and on a phone, by mouse, keyboard and touch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from storage import Cache
from storage.report.cache_page import report as cache_report
from student.config import ReportConfig
from student.report.whole import report as student_report
from tests.browser import Visit, visiting

# Contrast of text against what is behind it (WCAG 2.2, relative luminance), smallest first.
_CONTRASTS = """() => {
  const channels = text => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const found = channels(getComputedStyle(e).backgroundColor);
      if (found[3] > 0) return found;
    }
    return [255, 255, 255, 1];
  };
  const found = [];
  for (const element of document.body.querySelectorAll('*')) {
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || element.closest('title, desc')) continue;
    const style = getComputedStyle(element);
    const colour = element.namespaceURI.endsWith('svg') ? style.fill : style.color;
    const [a, b] = [luminance(channels(colour)), luminance(ground(element))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), element.outerHTML.slice(0, 100)]);
  }
  return found.sort((x, y) => x[0] - y[0]);
}"""
_OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
_OPEN_ALL = "() => document.querySelectorAll('details').forEach(d => d.open = true)"


@pytest.fixture(scope="session")
def pages(cache: Cache, report_config: ReportConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("pages")
    found = {name: directory / f"{name}.html" for name in ("cache", "student")}
    cache_report(str(cache.path), found["cache"])
    student_report(ReportConfig(**(vars(report_config) | {"out": found["student"]})))
    return found


@pytest.fixture(params=["light", "dark"])
def dark(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "dark")


@pytest.fixture
def passage(browser: Any, pages: dict[str, Path]) -> Iterator[Visit]:
    """The student's page at a desk."""
    with visiting(browser) as visit:
        visit.open(pages["student"])
        yield visit


@pytest.mark.parametrize("name", ["cache", "student"])
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_is_fetched_logged_or_too_wide(browser: Any, pages: dict[str, Path], name: str, width: int) -> None:
    with visiting(browser, width=width) as visit:
        visit.open(pages[name])
        assert visit.page.evaluate(_OVERFLOW) == 0
        visit.page.evaluate(_OPEN_ALL)
        assert visit.page.evaluate(_OVERFLOW) == 0
        assert visit.errors == []
        assert visit.requests == [pages[name].as_uri()]


@pytest.mark.parametrize("name", ["cache", "student"])
def test_text_can_be_read_in_light_and_dark(browser: Any, pages: dict[str, Path], name: str, dark: bool) -> None:
    with visiting(browser, dark=dark) as visit:
        visit.open(pages[name])
        contrasts = visit.page.evaluate(_CONTRASTS)
        assert len(contrasts) > 100
        assert contrasts[0][0] >= 4.5, contrasts[0]


@pytest.mark.parametrize("name", ["cache", "student"])
def test_dark_changes_page_and_charts(browser: Any, pages: dict[str, Path], name: str) -> None:
    colours = []
    for is_dark in (False, True):
        with visiting(browser, dark=is_dark) as visit:
            visit.open(pages[name])
            colours.append(
                visit.page.evaluate(
                    "() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
                    "getComputedStyle(document.querySelector('figure svg text')).fill]"
                )
            )
    assert colours[0][0] == "rgb(255, 255, 255)"
    assert all(light != dark for light, dark in zip(*colours, strict=True))


@pytest.mark.parametrize("name", ["cache", "student"])
def test_a_screenshot_shows_every_chart(
    browser: Any, pages: dict[str, Path], name: str, dark: bool, tmp_path: Path
) -> None:
    with visiting(browser, dark=dark) as visit:
        visit.open(pages[name])
        visit.page.screenshot(path=tmp_path / "page.png", full_page=True)
        charts = visit.page.locator("figure svg").all()
        assert len(charts) >= 5
        for number, chart in enumerate(charts):
            chart.screenshot(path=tmp_path / f"{number}.png")
    page = imread(tmp_path / "page.png")[..., :3]
    assert page.shape[1] == 1280
    assert (np.median(page) < 0.2) == dark
    for number in range(len(charts)):
        pixels = imread(tmp_path / f"{number}.png")[..., :3]
        ground = pixels[0, 0]
        inked = np.abs(pixels - ground).max(axis=2) > 0.1
        coloured = np.ptp(pixels, axis=2) > 0.2  # lines and bars; text, axes and ground are nearly grey
        assert 0.01 < inked.mean() < 0.9
        assert coloured.mean() > 0.001
        assert (ground.mean() < 0.2) == dark


def visible_cards(visit: Visit) -> list[str]:
    return [card.inner_text() for card in visit.page.locator(".card:visible").all()]


def test_pointing_at_a_token_shows_what_was_expected(passage: Visit) -> None:
    assert visible_cards(passage) == []
    token = passage.page.locator(".token").nth(3)
    token.hover()
    (card,) = visible_cards(passage)
    for part in ("Next came", "teacher", "student", "plain", "gave it", "KL"):
        assert part in card
    passage.page.mouse.move(0, 0)
    assert visible_cards(passage) == []


def test_tabbing_to_a_token_shows_it_too(passage: Visit) -> None:
    passage.page.locator(".skip").focus()
    while not passage.page.evaluate("() => document.activeElement.classList.contains('token')"):
        passage.page.keyboard.press("Tab")
    (first,) = visible_cards(passage)
    passage.page.keyboard.press("Tab")
    (second,) = visible_cards(passage)
    described = passage.page.evaluate("() => document.activeElement.getAttribute('aria-describedby')")
    assert passage.page.locator(f"#{described}").inner_text() == second
    assert described == "expected-1"
    assert "Next came" in first


def test_pointing_hides_the_card_of_the_focused_token(passage: Visit) -> None:
    passage.page.locator(".token").nth(2).focus()
    passage.page.locator(".token").nth(5).hover()
    assert len(visible_cards(passage)) == 1


def test_a_tap_on_a_phone_shows_the_card_inside_the_screen(browser: Any, pages: dict[str, Path]) -> None:
    with visiting(browser, width=390, height=800) as visit:
        visit.open(pages["student"])
        visit.page.locator(".token").nth(4).tap()
        (card,) = visible_cards(visit)
        assert "teacher" in card
        box = visit.page.locator(".card:visible").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert box["y"] + box["height"] <= 800
        assert visit.page.evaluate(_OVERFLOW) == 0


def test_the_tint_is_of_the_chosen_student(passage: Visit) -> None:
    tints = "() => [...document.querySelectorAll('.token')].map(t => getComputedStyle(t).backgroundColor)"
    classes = "() => [...document.querySelectorAll('.token')].map(t => t.className)"
    levels = {"m0": [], "m1": []}
    for names in passage.page.evaluate(classes):
        for name in names.split()[1:]:
            levels[name[:2]].append(int(name[-1]))
    for student, radio in enumerate(passage.page.locator("input[name=heat]").all()):
        radio.check()
        passage.page.mouse.move(0, 0)
        shown = passage.page.evaluate(tints)
        is_tinted = [colour != "rgba(0, 0, 0, 0)" for colour in shown]
        assert is_tinted == [level > 0 for level in levels[f"m{student}"]]
    assert sum(levels["m0"]) + sum(levels["m1"]) > 0


def test_everything_works_without_script(browser: Any, pages: dict[str, Path]) -> None:
    with visiting(browser, script=False) as visit:
        visit.open(pages["student"])
        visit.page.locator(".token").nth(1).hover()
        assert len(visible_cards(visit)) == 1
        summary = visit.page.locator("figure summary").first
        summary.click()
        assert visit.page.locator("figure details table").first.is_visible()


def test_what_is_linked_to_is_there(passage: Visit) -> None:
    for link in passage.page.locator("nav a").all():
        target = passage.page.locator(link.get_attribute("href"))
        assert target.count() == 1
        assert target.locator("h2").inner_text() == link.inner_text()
