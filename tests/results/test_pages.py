"""The pages of the documentation name commands, files and links that exist."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import yaml

from et.anomaly.published import PUBLISHED
from et.graphs.published import PUBLISHED_TU
from et.runs.record import LATER_KEYS, RESULT_KEYS
from et.utils.paths import CONF

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "docs" / "tutorial.ipynb",
    *sorted((ROOT / "experiments").glob("*/README.md")),
]


def text_of(page: Path) -> str:
    """A page's Markdown; of a notebook that of its text cells."""
    if page.suffix != ".ipynb":
        return page.read_text()
    cells = json.loads(page.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_sweeps_and_modules_of_a_page_exist(page):
    text = text_of(page)
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    for link, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", prose):
        target = page if not link else (page.parent / link).resolve()
        if link.startswith("http"):
            continue
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{link}#{anchor}"
    for sweep in re.findall(r"sweep=(\w+)", text):
        assert (CONF / "sweep" / f"{sweep}.yaml").exists() or sweep in ("tableNN", "mine"), sweep
    for module in re.findall(r"python -m (et\.[\w.]+)", text):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module


@pytest.mark.parametrize("number", ["01", "02", "07", "12", "13", "14", "16"])
def test_the_result_in_the_readme_of_a_table_is_on_record(number):
    folder = ROOT / "experiments" / f"table{number}"
    rows = [row for row in csv.DictReader((folder / "table.csv").open()) if row["mean"]]
    known = {f"{float(row['mean']):.{digits}f}" for row in rows for digits in (1, 2, 3)}
    known |= {row["paper_mean"] for row in rows}
    tables = re.findall(r"\n\n(\| (?:\||`held_out`|`released`).*?)\n\n", text_of(folder / "README.md"), re.DOTALL)
    cells = [cell for table in tables for line in table.splitlines()[2:] for cell in line.split("|")[2:]]
    values = re.findall(r"(?<![\d.,±] )(?<![\d.,])\d+\.\d+", " ".join(cells))
    assert len(values) > 4 and set(values) <= known, set(values) - known


def test_every_page_is_in_the_navigation():
    text = re.sub(r"!!python\S+", "", (ROOT / "mkdocs.yml").read_text())
    named = set(re.findall(r"[\w/-]+\.(?:md|ipynb)$", text, re.MULTILINE))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*") if path.suffix == ".md"}
    tables = {path.relative_to(ROOT).as_posix() for path in (ROOT / "experiments").glob("table*/README.md")}
    assert named == pages | tables | {"tutorial.ipynb"}


def test_the_data_page_names_every_published_file():
    page = (ROOT / "docs/how-to/data.md").read_text()
    for name, about in PUBLISHED.items():
        assert about.file in page, name
        address = about.address.partition(" ")[0]
        assert not address.startswith("http") or address.removesuffix("/") in page.replace("/raw/main", ""), name
    assert all(name in page for name in PUBLISHED_TU)


def test_the_reference_names_every_key_and_field():
    configuration = (ROOT / "docs/reference/configuration.md").read_text()
    for key in yaml.safe_load((CONF / "train.yaml").read_text()):
        assert key in ("defaults", "hydra") or f"`{key}`" in configuration, key
    for name in re.findall(r'--8<-- "([^":]+)', configuration):
        assert (ROOT / name).is_file(), name
    record = (ROOT / "docs/reference/runs.md").read_text()
    assert all(f"`{field}`" in record for field in (*RESULT_KEYS, *LATER_KEYS))
