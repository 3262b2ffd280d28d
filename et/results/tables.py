"""The paper's tables with measured values: python -m et.results.tables [1 2 ...]

Reads experiments/*/results.jsonl and, with --runs, run folders; writes table.md, .csv, .tex and .html into
experiments/tableNN/. What was left out, and why, stands in the tables under "Reports". Prints ET's rows of the tables
that are named. Without numbers it renders all tables and experiments/summary.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from et.results import paper
from et.results.collect import Collection, collect, relative
from et.results.formats import Document, to_html, to_latex, to_markdown
from et.results.paper import Table
from et.results.reference_tables import configuration_csv, configuration_document, statistics_csv, statistics_document
from et.results.results_table import results_csv, results_document
from et.results.statistics import read_statistics
from et.utils.errors import UserError
from et.utils.files import write_atomically
from et.utils.paths import EXPERIMENTS
from et.utils.startup import tolerate_encoding


def gather(roots: Sequence[Path], experiments: Path, tables: Sequence[Table] = ()) -> Collection:
    """Runs of ``tables`` (default: all) in the folders ``roots`` and in the results.jsonl files of ``experiments``."""
    wanted = [name for table in tables for name in (table.experiments() if table.kind == "results" else ())]
    return collect(roots, sorted(experiments.glob("table*/results.jsonl")), wanted if tables else None)


def render(table: Table, runs: Collection, experiments: Path) -> tuple[Document, str]:
    """Document and csv text of a table, from those of ``runs`` that belong to it."""
    if table.kind == "configuration":
        return configuration_document(table), configuration_csv(table)
    if table.kind == "statistics":
        counted = read_statistics(experiments / f"table{table.number:02d}")
        return statistics_document(table, counted), statistics_csv(table, counted)
    ours = runs.of(table.experiments())
    return results_document(table, ours), results_csv(table, ours)


def write(document: Document, csv_text: str, folder: Path) -> None:
    """Write table.md, table.csv, table.tex and table.html into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"md": to_markdown(document), "csv": csv_text, "tex": to_latex(document), "html": to_html(document)}
    for ending, text in texts.items():
        write_atomically(folder / f"table.{ending}", text)


def remarks(document: Document) -> str:
    """How many remarks on the records the table has; empty if none."""
    count = sum(len(section.points) for section in document.sections if section.heading == "Reports")
    return f" ({count} remark{'s' if count > 1 else ''} on the records under Reports)" if count else ""


def print_own_rows(table: Table, document: Document) -> None:
    """ET's rows of a results table on the terminal; nothing for other tables."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Shown

    ours = [method.name for method in table.methods if method.ours]
    for grid in document.grids:
        names = [row[grid.heads - 1].text for row in grid.rows]
        own = [any(name == one or name.startswith(f"{one} (") for one in ours) for name in names]
        rows = [row for row, is_own in zip(grid.rows, own, strict=True) if is_own]
        if grid.folded or not rows:
            continue
        shown = Shown(title=grid.caption, title_justify="left", box=box.SIMPLE)
        for index, name in enumerate(grid.columns):
            shown.add_column(name, justify="left" if index < grid.heads else "right")
        for row in rows:
            shown.add_row(*(escape(entry.text) for entry in row))
        Console(width=None if sys.stdout.isatty() else 180).print(shown)


def main(arguments: Sequence[str] | None = None) -> int:
    """Render tables of the paper."""
    parser = argparse.ArgumentParser(prog="python -m et.results.tables", description=main.__doc__)
    parser.add_argument("tables", nargs="*", type=int, help="table numbers; default: all")
    parser.add_argument("--runs", nargs="*", type=Path, default=[], help="run folders, searched at any depth")
    parser.add_argument("--experiments", type=Path, default=EXPERIMENTS, help="where tableNN/ folders are")
    options = parser.parse_args(arguments)
    try:
        for root in options.runs:
            if not root.is_dir():
                raise UserError(f"there is no folder {root}: --runs names folders with run folders in them")
        tables = [paper.load(number) for number in options.tables or paper.NUMBERS]
        runs = gather(options.runs, options.experiments, tables if options.tables else ())
        for table in tables:
            document, csv_text = render(table, runs, options.experiments)
            folder = options.experiments / f"table{table.number:02d}"
            write(document, csv_text, folder)
            print(f"table {table.number}: {relative(folder)}/table.md{remarks(document)}")
            if options.tables:
                print_own_rows(table, document)
        if not options.tables:
            from et.results.summary import write_summary

            print(f"summary: {relative(write_summary(runs, options.experiments))}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    tolerate_encoding()
    sys.exit(main())
