"""The report page without a mouse or a screen, by what Chromium tells assistive technology."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.report_graphs import LARGE, SMALL

NAMED = {
    "button", "checkbox", "combobox", "figure", "graphics-document", "graphics-object", "group",
    "heading", "image", "img", "link", "navigation", "region", "searchbox", "slider", "table",
    "textbox", "tree", "treeitem",
}  # fmt: skip
"""Roles that say nothing without a name."""

CONTROLS = "a[href], button, input, select, summary, [tabindex='0']"


class Tree:
    """The accessibility tree of a page."""

    def __init__(self, page: Any) -> None:
        session = page.context.new_cdp_session(page)
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        self.by_id = {node["nodeId"]: node for node in nodes}
        self.nodes = [node for node in nodes if not node["ignored"]]

    def named(self, role: str) -> list[str]:
        """The names of all nodes of a role."""
        return [name_of(node) for node in self.nodes if role_of(node) == role]

    def under(self, node: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """All nodes below one."""
        for child in node.get("childIds", ()):
            if child in self.by_id:
                yield self.by_id[child]
                yield from self.under(self.by_id[child])


def role_of(node: dict[str, Any]) -> str:
    return str(node.get("role", {}).get("value", ""))


def name_of(node: dict[str, Any]) -> str:
    return str(node.get("name", {}).get("value", "")).strip()


def open_details(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    for found in page.locator("details .scroll:visible").all():  # filled when they are opened
        found.locator("table").first.wait_for()


@pytest.mark.parametrize("blocks", [SMALL, LARGE])
def test_everything_that_needs_a_name_has_one(open_page: Any, blocks: int) -> None:
    page = open_page(blocks)
    open_details(page)
    tree = Tree(page)
    nameless = [n for n in tree.nodes if role_of(n) in NAMED and not name_of(n)]
    # What a details element holds is named by its summary.
    folded = [n for n in nameless if "DisclosureTriangle" in map(role_of, tree.under(n))]
    assert [role_of(n) for n in nameless if n not in folded or role_of(n) != "group"] == []
    assert {"Fold all", "Unfold one level", "Find"} <= set(tree.named("button"))
    assert {"Find op", "Search"} <= set(tree.named("searchbox"))
    assert {"Memory over one step", "Graph", "Modules"} <= set(tree.named("heading"))


def test_pictures_say_what_they_show(open_page: Any) -> None:
    page = open_page(SMALL)
    open_details(page)
    charts = [node for node in Tree(page).nodes if role_of(node) == "slider"]
    assert len(charts) == 3
    for chart in charts:
        told = {p["name"]: p["value"].get("value") for p in chart["properties"]}
        assert told["focusable"] is True
        assert told["valuetext"], name_of(chart)
    # Everything else that is drawn is either in a named picture or hidden.
    loose = page.evaluate(
        """() => [...document.querySelectorAll("svg")].filter((s) =>
        !s.closest("[aria-hidden='true']") && !s.getAttribute("aria-label")
        && !s.getAttribute("aria-labelledby")).map((s) => s.outerHTML.slice(0, 80))"""
    )
    assert loose == []
    # And can be read as a table instead.
    assert page.locator("details table").count() >= 3


@pytest.mark.parametrize("blocks", [SMALL, LARGE])
def test_tables_have_headers(open_page: Any, blocks: int) -> None:
    page = open_page(blocks)
    open_details(page)
    tree = Tree(page)
    tables = [node for node in tree.nodes if role_of(node) == "table"]
    assert len(tables) >= 4
    for table in tables:
        roles = [role_of(node) for node in tree.under(table)]
        assert "columnheader" in roles
        assert "rowheader" in roles
        # Each row has a header.
        assert roles.count("rowheader") == roles.count("row") - 1, name_of(table)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
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
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        stop = page.evaluate("document.activeElement.dataset.stop ?? null")
        if stop is None:  # the address bar: everything has been passed
            break
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


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast(open_page: Any, theme: str) -> None:
    """4.5 to 1 at least between text and what is behind it (WCAG 2.1, 1.4.3)."""
    page = open_page(SMALL, theme=theme)
    open_details(page)
    worst = page.evaluate(
        """() => {
        const parse = (c) => c.match(/[\\d.]+/g).map(Number);
        const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => { v /= 255;
          return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
          return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const behind = (n) => { for (; n; n = n.parentElement) {
          const c = parse(getComputedStyle(n).backgroundColor);
          if (c.length < 4 || c[3] > 0.99) return c; } return [255, 255, 255]; };
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
