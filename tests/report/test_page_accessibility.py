"""The report page without a mouse or a screen: its roles, names and values as ARIA defines them.

Roles and names are worked out by Playwright from the page's elements, not read from the browser's
accessibility tree: what its debugging protocol says of that tree differs from version to version.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from support.report_graphs import LARGE, SMALL

NAMED = (
    "button", "checkbox", "columnheader", "combobox", "figure", "group", "heading", "img", "link",
    "navigation", "region", "row", "rowheader", "searchbox", "slider", "table", "textbox", "tree",
    "treeitem",
)  # fmt: skip
"""Roles that say nothing without a name."""

CONTROLS = "a[href], button, input, select, summary, [tabindex='0']"


def open_details(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    for found in page.locator("details .scroll:visible").all():  # filled when they are opened
        found.locator("table").first.wait_for()


def nameless(page: Any, role: str) -> list[str]:
    """The beginnings of all elements of a role that have no name."""
    # What a details element holds is named by its summary.
    every = page.get_by_role(role).and_(page.locator(":not(details)"))
    named = every.and_(page.get_by_role(role, name=re.compile(r"\S")))
    if every.count() == named.count():
        return []
    named.evaluate_all("(found) => found.forEach((e) => { e.dataset.named = 'yes'; })")
    without = every.and_(page.locator(":not([data-named])"))
    found: list[str] = without.evaluate_all("(e) => e.map((n) => n.outerHTML.slice(0, 80))")
    return found


@pytest.mark.sampled(2)
@pytest.mark.parametrize("blocks", [SMALL, LARGE])
def test_everything_that_needs_a_name_has_one(open_page: Any, blocks: int) -> None:
    page = open_page(blocks)
    open_details(page)
    assert {role: found for role in NAMED if (found := nameless(page, role))} == {}
    for role, names in {
        "button": ("Fold all", "Unfold one level", "Find"),
        "searchbox": ("Find op", "Search"),
        "heading": ("Memory over one step", "Graph", "Modules"),
    }.items():
        for name in names:
            assert page.get_by_role(role, name=re.compile(f"^{name}")).count() >= 1, name
    page.evaluate("document.querySelector('#find-next').textContent = ''")
    assert len(nameless(page, "button")) == 1  # this can fail


def test_pictures_say_what_they_show(open_page: Any) -> None:
    page = open_page(SMALL)
    open_details(page)
    charts = page.get_by_role("slider")
    assert charts.count() == 3
    for chart in charts.all():
        heard: list[str] = []
        for key in ("End", "Home", "ArrowRight"):
            heard.append(chart.get_attribute("aria-valuetext") or "")
            low, now, high = (
                int(chart.get_attribute(f"aria-value{name}")) for name in ("min", "now", "max")
            )
            assert low <= now <= high
            chart.press(key)
            # Each point is drawn anew, and the keys go on working.
            assert chart.evaluate("(chart) => chart === document.activeElement")
        heard.append(chart.get_attribute("aria-valuetext") or "")
        assert len(set(heard)) == len(heard), heard
        assert all(re.search(r"\d", text) for text in heard)
    # What is heard is what is shown.
    for name in ("plain", "plan"):
        chart, read = page.locator(f"#{name}-chart svg"), page.locator(f"#{name}-read")
        chart.press("p")
        title = (chart.get_attribute("aria-valuetext") or "").split("; ")[0]
        assert re.match(r"[\d.]+ [KMG]iB at .+ op aten\.", title)
        assert read.inner_text().startswith(title)
    budget = (page.locator("#curve-chart svg").get_attribute("aria-valuetext") or "").split(",")[0]
    assert page.inner_text("#curve-detail dd >> nth=0").startswith(budget.removeprefix("budget "))
    # Everything else that is drawn is either in a named picture or hidden.
    loose = page.evaluate(
        """() => [...document.querySelectorAll("svg")].filter((s) =>
        !s.closest("[aria-hidden='true']") && !s.getAttribute("aria-label")
        && !s.getAttribute("aria-labelledby")).map((s) => s.outerHTML.slice(0, 80))"""
    )
    assert loose == []
    # And can be read as a table instead.
    assert page.locator("details table").count() >= 3


@pytest.mark.sampled(2)
@pytest.mark.parametrize("blocks", [SMALL, LARGE])
def test_tables_have_headers(open_page: Any, blocks: int) -> None:
    page = open_page(blocks)
    open_details(page)
    tables = page.get_by_role("table")
    assert tables.count() >= 4
    for table in tables.all():
        assert table.get_by_role("columnheader").count() > 1
        # Each row has a header.
        rows = table.get_by_role("row").count()
        assert rows > 1
        assert table.get_by_role("rowheader").count() == rows - 1, table.inner_text()[:80]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("width", "theme"),
    [
        (1280, "light"),
        (400, "dark"),
        pytest.param(1280, "dark", marks=pytest.mark.slow),
        pytest.param(400, "light", marks=pytest.mark.slow),
    ],
)
def test_the_keyboard_reaches_everything_and_the_focus_is_seen(
    open_page: Any, width: int, theme: str
) -> None:
    page = open_page(SMALL, width=width, theme=theme)
    open_details(page)
    wanted = page.evaluate(
        """(controls) => { let n = 0; document.querySelectorAll(controls).forEach((c) => {
        if (c.checkVisibility() && !c.disabled) c.dataset.stop = String(n++); }); return n; }""",
        CONTROLS,
    )
    assert wanted > 15
    reached: list[int] = []
    for _ in range(2 * wanted):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break  # the browser's own controls: everything has been passed
        stop = page.evaluate("document.activeElement.dataset.stop ?? null")
        if stop is not None:  # what else browsers stop at, such as what they can scroll
            reached.append(int(stop))
        seen = page.evaluate(
            """() => { const a = document.activeElement, s = getComputedStyle(a);
            const ring = a.querySelector(":scope > .ring");
            const drawn = (s) => parseFloat(s.outlineWidth) >= 2 && s.outlineStyle !== "none";
            const box = a.getBoundingClientRect();
            return [drawn(s) || (ring && getComputedStyle(ring).stroke !== "none"),
              box.bottom > 0 && box.top < innerHeight, a.outerHTML.slice(0, 80)]; }"""
        )
        assert seen[0], f"no focus ring: {seen[2]}"
        assert seen[1], f"focused, but out of sight: {seen[2]}"
    assert reached == sorted(reached)  # in the order of the page
    assert set(reached) == set(range(wanted))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast(open_page: Any, theme: str) -> None:
    """4.5 to 1 at least between text and what is behind it (WCAG 2.1, 1.4.3)."""
    page = open_page(SMALL, theme=theme)
    open_details(page)
    worst = page.evaluate(
        """() => {
        // Drawn and read back, for browsers write colours in several ways.
        const pen = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
          .getContext("2d", { willReadFrequently: true });
        const parse = (c) => {
          pen.clearRect(0, 0, 1, 1); pen.fillStyle = c; pen.fillRect(0, 0, 1, 1);
          const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255]; };
        const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => { v /= 255;
          return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
          return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const behind = (n) => { for (; n; n = n.parentElement) {
          const c = parse(getComputedStyle(n).backgroundColor);
          if (c[3] > 0.99) return c; } return [255, 255, 255]; };
        const found = [];
        const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        while (walker.nextNode()) {
          const node = walker.currentNode.parentElement;
          if (!walker.currentNode.textContent.trim() || !node.checkVisibility()) continue;
          if (node.closest("script, style, option, .node, .hidden")) continue;
          const style = getComputedStyle(node);
          const ink = parse(node.closest("svg") ? style.fill : style.color);
          const [a, b] = [light(ink), light(behind(node))].sort((x, y) => y - x);
          found.push([(a + 0.05) / (b + 0.05), walker.currentNode.textContent.slice(0, 40)]);
        }
        return found.sort((x, y) => x[0] - y[0]).slice(0, 3);
        }"""
    )
    assert worst[0][0] >= 4.5, worst
