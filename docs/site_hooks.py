"""What the documentation site adds to the pages of this folder; read by mkdocs (see mkdocs.yml).

The pages are plain Markdown that can be read in the repository too. So links to files outside of
this folder, such as `../CHANGELOG.md` or `../examples/ddp.py`, and from them into it, such as
`docs/cli.md`, are written as they are in the repository; the site has pages for those files, and
the links are turned to them.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]
_ROOT_PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
_LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[)#])")
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|/")


def outside_pages() -> dict[str, str]:
    """Files outside of this folder that the site shows, by their path: where, by their page's."""
    examples = sorted((ROOT / "examples").glob("*.py"))
    return {**_ROOT_PAGES, **{f"examples/{e.name}": f"examples/{e.stem}.md" for e in examples}}


def expanded(nav: list[Any], pages: list[str], named: set[str]) -> list[Any]:
    """The navigation with the pages of a folder in the place of `FOLDER/*.md`."""
    result: list[Any] = []
    for entry in nav:
        label, target = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
        if isinstance(target, list):
            result.append({label: expanded(target, pages, named)})
        elif target.endswith("/*.md"):
            folder = posixpath.dirname(target)
            found = [p for p in pages if posixpath.dirname(p) == folder and p not in named]
            result.extend(found if label is None else [{label: found}])
        else:
            result.append(entry)
    return result


def named_pages(nav: list[Any]) -> set[str]:
    """All pages that the navigation names one by one."""
    found: set[str] = set()
    for entry in nav:
        target = next(iter(entry.values())) if isinstance(entry, dict) else entry
        found |= named_pages(target) if isinstance(target, list) else {target}
    return found


def example_page(path: Path) -> str:
    """A page that shows an example: what its docstring says, then the whole file."""
    code = path.read_text(encoding="utf-8")
    said = (ast.get_docstring(ast.parse(code)) or "").splitlines()
    return f"# {path.stem.replace('_', ' ')}\n\n{said[0]}\n\n```python\n{code}```\n"


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of files outside of this folder, and fill in the navigation."""
    for source, target in outside_pages().items():
        path = ROOT / source
        text = example_page(path) if path.suffix == ".py" else path.read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=text))
    pages = sorted(
        file.src_uri
        for file in files.documentation_pages()
        if file.inclusion is not InclusionLevel.EXCLUDED
    )
    config["nav"] = expanded(config["nav"], pages, named_pages(config["nav"]))
    return files


def site_link(page: str, target: str) -> str:
    """A link as it is in the repository, turned to the page that the site has for its target.

    Args:
        page: the page that holds the link, by its place in the site.
        target: what the link names, seen from the page's file in the repository.
    """
    if _ELSEWHERE.match(target):
        return target
    outside = outside_pages()
    sources = {shown: source for source, shown in outside.items()}
    source = sources.get(page, posixpath.join("docs", page))
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    shown = outside.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
    return target if shown is None else posixpath.relpath(shown, posixpath.dirname(page) or ".")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links between this folder and files outside of it to the site's pages."""
    here = page.file.src_uri
    return _LINK.sub(lambda match: site_link(here, match[1]), markdown)
