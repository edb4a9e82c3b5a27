"""Draw the rooms of the code and what each imports: docs/pictures/architecture.svg.

Run from the root of the repository, with the development tools installed:

    python docs/pictures/make_architecture.py           # write the picture
    python docs/pictures/make_architecture.py --check   # say whether it is that of the code

Rooms and their order are those of the layer contracts in pyproject.toml; imports are read from the
code. A row imports the columns that have a number: how many of its files do. All numbers are on one
side of the diagonal, as imports go one way.
"""

from __future__ import annotations

import argparse
import ast
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]
PICTURE = Path(__file__).with_name("architecture.svg")
CELL, LABEL, HEAD, NOTE, GAP = 22, 128, 112, 440, 44


@dataclass(frozen=True)
class House:
    """A package with rooms in layers, from the top to the bottom, and who imports whom.

    Attributes:
        package: its name.
        layers: names of rooms that stand side by side, layer by layer.
        imports: (importer, imported) and how many of the importer's files do.
        files: how many each room holds.
        about: what each room says of itself.
    """

    package: str
    layers: tuple[tuple[str, ...], ...]
    imports: dict[tuple[str, str], int]
    files: dict[str, int]
    about: dict[str, str]

    @property
    def rooms(self) -> list[str]:
        """All rooms, from the top to the bottom."""
        return [room for layer in self.layers for room in layer]


def contracts() -> list[tuple[str, tuple[tuple[str, ...], ...]]]:
    """The packages that have layers, and these, as the contracts say."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = tomllib.loads(text)["tool"]["importlinter"]["contracts"]
    return [
        (contract["containers"][0], tuple(_names(layer) for layer in contract["layers"]))
        for contract in found
        if contract["type"] == "layers"
    ]


def _names(layer: str) -> tuple[str, ...]:
    return tuple(name.strip(" ()") for name in layer.split(":"))


def read_house(
    graph: grimp.ImportGraph, package: str, layers: tuple[tuple[str, ...], ...]
) -> House:
    """A package as its code is now."""
    modules: dict[str, list[str]] = {room: [] for layer in layers for room in layer}
    for module in sorted(graph.modules):
        if module.startswith(f"{package}."):
            modules[module.removeprefix(f"{package}.").split(".")[0]].append(module)
    room_of = {m: room for room, held in modules.items() for m in held}
    imports: dict[tuple[str, str], int] = {}
    for module, room in room_of.items():
        used = {room_of.get(m) for m in graph.find_modules_directly_imported_by(module)}
        for other in used - {room, None}:
            imports[room, other] = imports.get((room, other), 0) + 1
    return House(
        package,
        layers,
        imports,
        {room: len(held) for room, held in modules.items()},
        {room: _about(_path(f"{package}.{room}")) for room in modules},
    )


def _path(module: str) -> Path:
    path = ROOT.joinpath("src", *module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _about(path: Path) -> str:
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return said.split("\n\n")[0].replace("\n", " ")


def houses() -> list[House]:
    """All packages that have layers, as their code is now."""
    graph = grimp.build_graph("memfit", exclude_type_checking_imports=True)
    return [read_house(graph, package, layers) for package, layers in contracts()]


def draw(found: Sequence[House]) -> str:
    """The picture, as SVG."""
    parts: list[str] = []
    top = 0
    width = 0
    for house in found:
        body, height, wide = _matrix(house, top)
        parts += body
        top += height + GAP
        width = max(width, wide)
    style = (
        "text{font:12px system-ui,sans-serif;fill:#1a1a1a}.t{font-weight:600;font-size:14px}"
        ".n{font-size:10px;text-anchor:middle}.a{fill:#555}.r{text-anchor:end}"
        "@media(prefers-color-scheme:dark){.page{fill:#1e2129}text{fill:#e8e8e8}.a{fill:#aaa}"
        ".n{fill:#111}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" role="img" '
        f'aria-label="Which room of memfit imports which">\n<style>{style}</style>\n'
        f'<rect class="page" width="{width}" height="{top}" fill="#fff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _matrix(house: House, top: int) -> tuple[list[str], int, int]:
    rooms = house.rooms
    left, first = LABEL + 12, top + HEAD + 24
    side = CELL * len(rooms)
    parts = [f'<text class="t" x="12" y="{top + 24}">{house.package}: a row imports columns</text>']
    for i, room in enumerate(rooms):
        x, y = left + i * CELL, first + i * CELL
        middle = y + CELL / 2 + 4
        count = house.files[room]
        held = f"{count} file{'' if count == 1 else 's'}"
        about = house.about[room]
        about = about if len(about) <= 78 else f"{about[:77]}…"
        parts += [
            f'<text class="r" x="{left - 8}" y="{middle:g}">{room}</text>',
            f'<text transform="translate({x + CELL / 2 + 4:g} {first - 8}) rotate(-60)">'
            f"{room}</text>",
            f'<text class="a" x="{left + side + 10}" y="{middle:g}"><title>{held}</title>'
            f"{escape(about)}</text>",
            f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="#9aa5b1"/>',
        ]
    for (importer, imported), count in sorted(house.imports.items()):
        x, y = left + rooms.index(imported) * CELL, first + rooms.index(importer) * CELL
        right_way = rooms.index(importer) < rooms.index(imported)
        colour = "#a8d5ba" if right_way else "#d55e00"
        parts += [
            f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="{colour}">'
            f"<title>{importer} imports {imported} in {count} files</title></rect>",
            f'<text class="n" x="{x + CELL / 2:g}" y="{y + CELL / 2 + 4:g}">{count}</text>',
        ]
    done = 0
    for layer in house.layers:
        parts.append(
            f'<path d="M{12} {first + done * CELL}H{left + side}" stroke="#8884" fill="none"/>'
        )
        done += len(layer)
    return parts, HEAD + 24 + side + 12, left + side + NOTE


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the picture, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where it is old")
    args = parser.parse_args(arguments)
    picture = draw(houses())
    if args.check:
        same = PICTURE.read_text(encoding="utf-8") == picture
        print("the picture is that of the code" if same else f"{PICTURE} is old; draw it again")
        return 0 if same else 1
    PICTURE.write_text(picture, encoding="utf-8")
    print(f"{PICTURE.relative_to(ROOT)} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
