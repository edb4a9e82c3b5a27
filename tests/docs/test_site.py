"""The documentation site builds without a warning, and reading it asks the network for nothing."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import memfit
import memfit.errors

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")
# What a browser fetches by itself; an <a href> is followed by the reader.
_FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
_NO_FETCH = {"canonical", "prev", "next"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(module, reason=f"{module} is not installed (memfit[docs])")
    folder = tmp_path_factory.mktemp("site")
    # As in `make docs`: what --quiet hides is not counted by --strict.
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Documentation built" in done.stderr  # its messages are shown, so warnings would be too
    assert "WARNING" not in done.stderr
    return folder


class _Followed(HTMLParser):
    """Addresses that a reader can follow from a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found.extend(value or "" for name, value in attrs if name == "href")


class _Fetched(HTMLParser):
    """Addresses that a browser fetches when it shows the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag in _FETCHED and given.get("rel") not in _NO_FETCH:
            self.found.append(given.get(_FETCHED[tag], ""))


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    local = 0
    for page in pages:
        for address in _Fetched(page.read_text(encoding="utf-8")).found:
            assert not re.match(r"([a-z]+:)?//", address), f"{page.name} fetches {address}"
            if page.name != "404.html" and address:  # whose addresses are those of the root
                local += 1
                path = (page.parent / address.split("?")[0].split("#")[0]).resolve()
                assert path.exists(), f"{page.name} lacks {address}"
    assert local > 100
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text())


def test_every_link_leads_somewhere(site: Path) -> None:
    """Also from the pages of files outside of docs, whose links are turned."""
    followed = 0
    for page in sorted(site.rglob("*.html")):
        if page.name == "404.html":  # whose addresses are those of the root
            continue
        for address in _Followed(page.read_text(encoding="utf-8")).found:
            path = address.split("#")[0].split("?")[0]
            if path and not re.match(r"([a-z]+:)?//|mailto:", path):
                followed += 1
                assert (page.parent / path).resolve().exists(), f"{page.name} leads to {address}"
    assert followed > 500
    assert 'href="correctness.html#versions-of-pytorch"' in (site / "contributing.html").read_text()


@pytest.mark.parametrize(
    ("page", "link", "turned"),
    [
        ("contributing.md", "docs/correctness.md", "correctness.md"),
        ("contributing.md", "docs/adr/0003-native-core.md", "adr/0003-native-core.md"),
        ("contributing.md", "CHANGELOG.md", "changelog.md"),
        ("cli.md", "../CHANGELOG.md", "changelog.md"),
        ("benchmarks/peers.md", "../../examples/ddp.py", "../examples/ddp.md"),
        ("benchmarks/peers.md", "../cli.md", "../cli.md"),
        ("cli.md", "shapes.md", "shapes.md"),
        ("cli.md", "../no/such/file.py", "../no/such/file.py"),
        ("cli.md", "https://example.org/docs/cli.md", "https://example.org/docs/cli.md"),
    ],
)
def test_links_are_turned_to_the_sites_pages(page: str, link: str, turned: str) -> None:
    hooks = pytest.importorskip("mkdocs") and runpy.run_path(str(DOCS / "site_hooks.py"))
    assert hooks["site_link"](page, link) == turned


def test_every_public_name_has_its_place(site: Path) -> None:
    api = (site / "api.html").read_text(encoding="utf-8")
    anchors = set(re.findall(r'id="(memfit[\w.]*)"', api))
    names = {anchor.rsplit(".", 1)[1] for anchor in anchors if "." in anchor}
    assert names >= set(memfit.__all__) - {"__version__"}
    assert names >= set(memfit.errors.__all__)
    # "a, b: what they are" is read as one name.
    assert not re.search(r"<code>\w+,</code>", api)
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    for name in memfit.__all__:
        assert name in page


def _links(path: Path) -> set[Path]:
    """Where a page links to inside of the repository."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = (t for t in _LINK.findall(text) if not re.match(r"[a-z]+:", t))
    return {(path.parent / target).resolve() for target in found}


@pytest.mark.parametrize(
    "path",
    [*ROOT.glob("*.md"), *sorted(DOCS.rglob("*.md"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_links_work_in_the_repository(path: Path) -> None:
    for target in _links(path):
        assert target.exists(), f"{path.name} links to {target.relative_to(ROOT)}"


def test_every_page_can_be_found_from_the_index() -> None:
    pages = {path for path in DOCS.rglob("*.md") if path.name != "README.md"}
    lacking = sorted(str(path.relative_to(DOCS)) for path in pages - _links(DOCS / "README.md"))
    assert lacking == [], "each page needs a line in docs/README.md"
