"""Hooks of mkdocs: the folders of the tables become pages of the site.

On disk docs/ and experiments/ stand side by side; on the site experiments/ is a folder of docs/. Links are written as
they work on disk and rewritten here.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of experiments/, but for rendered HTML."""
    for path in sorted((ROOT / "experiments").rglob("*")):
        if path.is_file() and path.suffix in {".md", ".csv", ".jsonl", ".json", ".tex", ".png", ".jpg"}:
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
