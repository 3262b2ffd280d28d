"""Draw which package imports which, into docs/images/imports.svg: python scripts/draw_imports.py

The drawing is made from the syntax trees of the files in et/; nothing is imported. A solid arc is an import at the top
of a module. A dashed arc is one inside a function or for type checking only: it loads nothing until it is needed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
DRAWING = ROOT / "docs" / "images" / "imports.svg"
TASKS = ("anomaly", "graphs", "inpainting")
WIDTH, MIDDLE, HEIGHT = 540, 250, 46
COLOURS = ("#2b5bc7", "#b4500f", "#0b6b60", "#8a2f8f", "#a01c3c", "#4d6a00", "#5a4fcf", "#8a5a00", "#00698c", "#555b66")


class Import(NamedTuple):
    """An import of one module of the project by another; ``late`` if it is not at the top of the module."""

    source: str
    target: str
    late: bool


def imports(root: Path = ROOT) -> list[Import]:
    """Every import of a module of ``et`` in the files of ``root``/et.

    ``from et.core import block`` is an import of ``et.core.block`` if that is a module, else of ``et.core``.
    """
    found = []
    for file in sorted((root / "et").rglob("*.py")):
        source = _module_name(file, root)
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            found += [Import(source, target, node not in tree.body) for target in _targets(node, root)]
    return found


def _module_name(file: Path, root: Path) -> str:
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _targets(node: ast.AST, root: Path) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "et")
    elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "et":
        for alias in node.names:
            module = f"{node.module}.{alias.name}"
            path = root / module.replace(".", "/")
            yield module if path.is_dir() or path.with_suffix(".py").is_file() else node.module


def package(module: str) -> str:
    """Second part of a module's name: the package of et/ that it is in."""
    return module.split(".")[1] if "." in module else module


def drawing(found: list[Import]) -> str:
    """SVG of the packages in a column, each above what it imports at the top of a module.

    Arcs on the right are such imports. Arcs on the left are the others. Imports of ``utils``, which everything may
    use, are left out.
    """
    solid = {(package(i.source), package(i.target)) for i in found if not i.late}
    dotted = {(package(i.source), package(i.target)) for i in found if i.late} - solid
    solid, dotted = ({(a, b) for a, b in pairs if a != b and b != "utils"} for pairs in (solid, dotted))
    names = sorted({name for pair in solid | dotted for name in pair}, key=lambda name: (-_height(name, solid), name))
    rows = {name: (HEIGHT * i + HEIGHT, COLOURS[i % len(COLOURS)]) for i, name in enumerate(names)}
    bottom = HEIGHT * (len(names) + 1)
    size = f'width="{WIDTH}" height="{bottom}" viewBox="0 0 {WIDTH} {bottom}"'
    style = 'font-family="Helvetica, Arial, sans-serif" font-size="14" text-anchor="middle" stroke-width="1.5"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>']
    parts += [f'<rect width="{WIDTH}" height="{bottom}" rx="8" fill="#f4f6f8"/>']
    parts += [_arc(rows[a], rows[b], 1, "") for a, b in sorted(solid)]
    parts += [_arc(rows[a], rows[b], -1, ' stroke-dasharray="5 4"') for a, b in sorted(dotted)]
    for name, (y, colour) in rows.items():
        parts.append(
            f'<rect x="{MIDDLE - 60}" y="{y - 15}" width="120" height="30" rx="5" fill="#fff" stroke="{colour}"/>'
        )
        parts.append(f'<text x="{MIDDLE}" y="{y + 5}" fill="#1f2328">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _height(name: str, pairs: set[tuple[str, str]]) -> int:
    """Length of the longest chain of imports that starts at a package."""
    return max((1 + _height(target, pairs) for source, target in pairs if source == name), default=0)


def _arc(source: tuple[int, str], target: tuple[int, str], side: int, dashes: str) -> str:
    """An arc in the colour of the importing package, with a head at the imported one."""
    (start, colour), (end, _) = source, target
    x = MIDDLE + side * 60
    out = x + side * (30 + 0.38 * abs(end - start))
    head = f"M{x + side * 9} {end - 4}L{x} {end}L{x + side * 9} {end + 4}z"
    line = f'<path d="M{x} {start}C{out:g} {start} {out:g} {end} {x} {end}" fill="none" stroke="{colour}"{dashes}/>'
    return line + f'<path d="{head}" fill="{colour}"/>'


if __name__ == "__main__":
    DRAWING.write_text(drawing(imports()), encoding="utf-8")
