"""Hooks of the documentation site: the folders of the tables become pages, docstrings become Markdown.

On disk docs/ and experiments/ stand side by side; on the site experiments/ is a folder of docs/. Links are written as
they work on disk and rewritten here.
"""

from __future__ import annotations

import inspect
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of experiments/, but for rendered HTML."""
    for path in sorted((ROOT / "experiments").rglob("*")):
        if path.is_file() and path.suffix in {".md", ".csv", ".jsonl", ".json", ".tex", ".png", ".svg", ".jpg"}:
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links between docs/ and experiments/ to where their targets are on the site."""
    source = page.file.src_uri
    on_disk = source if source.startswith("experiments/") else f"docs/{source}"

    def rewrite(match: re.Match[str]) -> str:
        opening, link, anchor, closing = match.groups()
        target = posixpath.normpath(posixpath.join(posixpath.dirname(on_disk), link))
        if target == "experiments":
            target = "docs/index.md"
        on_site = target.removeprefix("docs/")
        relative = posixpath.relpath(on_site, posixpath.dirname(source) or ".")
        return f"{opening}{relative}{anchor or ''}{closing}"

    return LINK.sub(rewrite, markdown)


class SphinxMarkup(griffe.Extension):
    """Turn the Sphinx markup of docstrings (roles, links, formulas) into Markdown."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of ``obj``."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """Sphinx roles as code, its links as links, and its formulas as MathML."""
    text = re.sub(r":(?:func|class|mod|meth|data|attr):`~?([^`]+)`", r"`\1`", text)
    text = re.sub(r"`([^`<]+) <(https?://[^>`]+)>`_", r"[\1](\2)", text)
    return re.sub(r"^\.\. math::\n((?:[ ]{4,}.*\n?|\n(?=[ ]{4}))+)", _formula, text, flags=re.MULTILINE)


def _formula(match: re.Match[str]) -> str:
    lines = inspect.cleandoc(match[1]).splitlines()
    return convert(" ".join(line.strip() for line in lines), display="block") + "\n\n"
