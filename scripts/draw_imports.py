"""Draw which package imports which, into docs/explanation/code.md: python scripts/draw_imports.py

The drawing is a Mermaid flowchart, which GitHub renders. It is made from the syntax trees of the files in et/; nothing
is imported. A solid arrow is an import at the top of a module. A dotted arrow is one inside a function or for type
checking only: it loads nothing until it is needed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "explanation" / "code.md"
TASKS = ("anomaly", "graphs", "inpainting")


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
    """Mermaid flowchart of the imports between packages, without those of ``utils``, which everything may use."""
    solid = {(package(i.source), package(i.target)) for i in found if not i.late}
    dotted = {(package(i.source), package(i.target)) for i in found if i.late} - solid
    lines = ["flowchart TD", "    subgraph tasks"]
    lines += [f"        {name}" for name in TASKS]
    lines.append("    end")
    for arrow, pairs in (("-->", solid), ("-.->", dotted)):
        lines += [f"    {a} {arrow} {b}" for a, b in sorted(pairs) if a != b and b != "utils"]
    return "\n".join(lines)


def with_drawing(page: str, flowchart: str) -> str:
    """``page`` with its Mermaid block replaced."""
    return re.sub(r"```mermaid\n.*?```", lambda _: f"```mermaid\n{flowchart}\n```", page, count=1, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(with_drawing(PAGE.read_text(encoding="utf-8"), drawing(imports())), encoding="utf-8")
