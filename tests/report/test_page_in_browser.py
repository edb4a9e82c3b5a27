"""The report page in headless Chromium: no error, no request, hover, click and keys work.

Needs Playwright (`pip install playwright`) and a Chromium (Debian's `chromium`, or another named by
MEMFIT_CHROMIUM); skipped where either is missing. With MEMFIT_SCREENSHOTS=FOLDER the screenshots of
both themes and widths are kept there.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from memfit.planners import PlannerOptions
from memfit.report.html import save_report
from memfit.report.page_curve import sample_curve
from support.report_graphs import network, segmented_plan

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

CHROMIUM = os.environ.get("MEMFIT_CHROMIUM") or next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

SMALL, LARGE = 3, 357


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # Debian's sandbox needs privileges that containers lack; the page is our own.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A report with a curve of a small graph, and one of a graph of 5,000 forward ops."""
    folder = tmp_path_factory.mktemp("reports")
    small, large = network(SMALL), network(LARGE)
    shapes = ["64x256 float32"] * len(small.ops)
    curve = sample_curve(small, "auto", PlannerOptions(), 6)
    save_report(folder / "small.html", small, segmented_plan(small), shapes, curve)
    save_report(folder / "large.html", large, segmented_plan(large))
    return {SMALL: folder / "small.html", LARGE: folder / "large.html"}


@dataclass
class Shown:
    """A page that is open, and what it complained about and asked for."""

    page: Any
    troubles: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def open_page(browser: Any, pages: dict[int, Path]) -> Iterator[Any]:
    """Opens a report; at the end nothing must have failed and nothing been asked for."""
    contexts: list[Any] = []
    opened: list[tuple[Shown, str]] = []

    def call(blocks: int, *, width: int = 1280, theme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        contexts.append(context)
        page = context.new_page()
        shown = Shown(page)
        page.on("console", lambda m: shown.troubles.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda e: shown.troubles.append(str(e)))
        page.on("request", lambda r: shown.requests.append(r.url))
        url = pages[blocks].as_uri()
        page.goto(url)
        page.wait_for_selector("html[data-ready=yes]")
        opened.append((shown, url))
        return page

    yield call
    for shown, url in opened:
        assert shown.troubles == []
        assert shown.requests == [url]
    for context in contexts:
        context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("blocks", [SMALL, LARGE])
def test_it_opens(open_page: Any, tmp_path: Path, blocks: int, width: int, theme: str) -> None:
    page = open_page(blocks, width=width, theme=theme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.get_attribute("html", "data-theme") == theme
    folder = Path(os.environ.get("MEMFIT_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    name = "small" if blocks == SMALL else "large"
    picture = folder / f"report-{name}-{theme}-{width}.png"
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
