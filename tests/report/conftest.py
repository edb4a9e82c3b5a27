"""A headless Chromium that shows report pages, for the tests of this folder.

Needs Playwright (`pip install playwright`) and a Chromium (Debian's `chromium`, or another named by
MEMFIT_CHROMIUM); what asks for it is skipped where either is missing, and where this Playwright
cannot drive this Chromium, which a page that is not ours shows.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from memfit.analysis.curve import sample_curve
from memfit.planners import PlannerOptions
from memfit.report.page.html import save_report
from support.report_graphs import LARGE, SMALL, network, segmented_plan

CHROMIUM = os.environ.get("MEMFIT_CHROMIUM") or next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        # Debian's sandbox needs privileges that containers lack; the page is our own.
        try:
            started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"{CHROMIUM} does not start: {str(error).splitlines()[0]}")
        try:
            try_out(started)
        except sync_api.Error as error:
            started.close()
            pytest.skip(f"Playwright cannot drive {CHROMIUM}: {str(error).splitlines()[0]}")
        yield started
        started.close()


def try_out(browser: Any) -> None:
    """Does with another page what the tests do with ours."""
    context = browser.new_context(viewport={"width": 400, "height": 300}, color_scheme="dark")
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto("data:text/html,<button onclick='this.textContent+=1'>press</button><input>")
    page.get_by_role("button", name="press").click()
    page.get_by_role("button", name="press1").press("Enter")
    page.keyboard.press("Tab")
    page.fill("input", "text")
    page.evaluate("document.body.innerHTML")
    page.screenshot()
    context.close()


@pytest.fixture(scope="session")
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
    """Opens a report; at the end nothing must have failed and nothing been asked for.

    A browser's advice on the console, which changes from version to version, is no failure.
    """
    contexts: list[Any] = []
    opened: list[tuple[Shown, str]] = []

    def call(blocks: int, *, width: int = 1280, theme: str = "light") -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion="reduce"
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)  # drawing a whole page may wait for a busy machine
        shown = Shown(page)
        page.on("console", lambda m: shown.troubles.append(m.text) if m.type == "error" else None)
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
