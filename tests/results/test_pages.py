"""The pages about the tables name commands, files and links that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from et.results import paper
from et.utils.paths import CONF

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs/reproduction.md", *(ROOT / f"experiments/table{n:02d}/README.md" for n in paper.NUMBERS)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_sweeps_and_modules_of_a_page_exist(page):
    text = page.read_text()
    generated = {"table.md"}  # made by `make tables`
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link in generated or link.startswith("http") or (page.parent / link).exists(), link
    for sweep in re.findall(r"sweep=(\w+)", text):
        assert (CONF / "sweep" / f"{sweep}.yaml").exists(), sweep
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module
