"""The report page in headless Chromium: no error, no request, hover, click and keys work.

Screenshots of both themes and widths are kept in build/screenshots, or in the folder that
MEMFIT_SCREENSHOTS names.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from support.report_graphs import LARGE, SMALL

SCREENSHOTS = Path(
    os.environ.get("MEMFIT_SCREENSHOTS") or Path(__file__).parents[2] / "build" / "screenshots"
)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("blocks", [SMALL, LARGE])
def test_it_opens(open_page: Any, blocks: int, width: int, theme: str) -> None:
    page = open_page(blocks, width=width, theme=theme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.get_attribute("html", "data-theme") == theme
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    name = "small" if blocks == SMALL else "large"
    picture = SCREENSHOTS / f"report-{name}-{theme}-{width}.png"
    page.screenshot(path=str(picture), full_page=True)
    assert picture.stat().st_size > 20_000


def test_memory_by_mouse_and_keys(open_page: Any) -> None:
    page = open_page(SMALL)
    chart = page.locator("#plan-chart svg")
    chart.hover(position={"x": 300, "y": 100})
    assert " aten." in page.inner_text("#tip b")
    assert "network.py:" in page.inner_text("#tip")
    chart.press("p")
    peak = page.inner_text("#peak-text").split(" while ")[0]
    assert page.inner_text("#plan-read").startswith(peak)
    before = chart.get_attribute("aria-valuenow")
    chart.press("ArrowRight")
    assert chart.get_attribute("aria-valuenow") == str(int(before) + 1)
    page.click("#peak-plain")
    assert page.inner_text("#peak-text").split(" while ")[0] != peak
    assert "network.py:" in page.inner_text("#peak-table tbody")
    page.click("text=Both charts as a table")
    assert "kept activations" in page.inner_text("#memory-table")


def test_a_point_of_the_curve_shows_its_plan_everywhere(open_page: Any) -> None:
    page = open_page(SMALL)
    figures = page.inner_text("#figures")
    page.locator("#curve-chart svg").press("Home")
    detail = page.inner_text("#curve-detail")
    assert "Point 1 of" in detail
    assert "recomputed" in detail
    assert page.inner_text("#figures") == figures
    page.click("#show-point")
    assert page.inner_text("#figures") != figures
    assert "point 1 of the trade-off" in page.inner_text("#which")
    page.click("#which button")
    assert page.inner_text("#figures") == figures
    points = page.locator("#curve-chart circle.point")
    points.nth(points.count() - 1).click()
    assert page.inner_text("#curve-detail") != detail


def test_the_graph_folds_and_unfolds(open_page: Any) -> None:
    page = open_page(LARGE)
    boxes = page.locator("#graph-box .node")
    folded = boxes.count()
    assert 1 < folded <= 60
    blocks = page.locator("#graph-box .node[aria-expanded]").first
    assert f"{LARGE} equal blocks" in (blocks.get_attribute("aria-label") or "")
    blocks.hover()
    assert "recomputed:" in page.inner_text("#tip")
    blocks.click()
    unfolded = boxes.count()
    assert unfolded > folded
    page.keyboard.press("Enter")
    assert boxes.count() > unfolded
    page.keyboard.press("Backspace")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.classList.contains('node')")
    page.click("#fold-all")
    page.fill("#find-op", "blocks.200.mlp.up")
    page.click("#find-next")
    assert "aten.mm" in page.inner_text("#graph-detail h3")
    assert "blocks.200.mlp.up" in page.inner_text("#graph-detail")
    page.click("#fold-all")
    page.click("#unfold-level")
    assert boxes.count() > 1


def test_ops_say_what_they_are(open_page: Any) -> None:
    page = open_page(SMALL)
    page.locator("#graph-box .node").nth(4).hover()
    tip = page.inner_text("#tip")
    for word in ("op: aten.", "shape: 64x256 float32", "writes: ", "time: ", "source: blocks.0"):
        assert word in tip
    assert page.locator("#graph-box .node.kept").count() > 0
    assert page.locator("#graph-box .node .shade").count() > 0


def test_modules_are_sorted_and_searched(open_page: Any) -> None:
    page = open_page(SMALL)
    rows = page.locator("#modules-table tbody tr")
    every = rows.count()
    page.click("#modules-table th button[data-column='0']")
    assert page.get_attribute("#modules-table th >> nth=0", "aria-sort") == "ascending"
    first = rows.first.inner_text()
    page.keyboard.press("Enter")
    assert rows.first.inner_text() != first
    page.fill("#search", "mlp.up")
    assert rows.count() == SMALL < every
    page.fill("#search", "")
    page.select_option("#depth", "1")
    assert rows.count() == 2


def test_the_theme_switch(open_page: Any) -> None:
    page = open_page(SMALL, theme="dark")
    color = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(color)
    page.click("#theme")
    assert page.get_attribute("html", "data-theme") == "light"
    assert page.evaluate(color) != dark
    page.click("#theme")
    assert page.evaluate(color) == dark


def test_everything_has_a_name(open_page: Any) -> None:
    page = open_page(SMALL)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, [role], [tabindex='0']")]
        .filter((n) => !n.hidden && !n.matches("[aria-label], [aria-labelledby]")
          && !n.textContent.trim() && !n.closest("label")).map((n) => n.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3')].map((n) => Number(n.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
