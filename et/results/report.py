"""The report page: python -m et.results.report [1 2 ...] [--runs runs] [--output build/report.html]

One self-contained HTML page with the paper's tables: no network, no build step, opens from file://. It is made from the
recorded results in experiments/ and, with --runs, from run folders, which also have pictures, full curves and recorded
descents. Its template is page/index.html.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from et.results import paper
from et.results.collect import Collection, Run, relative
from et.results.coverage import coverage_of
from et.results.evidence import Evidence
from et.results.formats import Grid
from et.results.measured import lines_of
from et.results.results_table import DASH, Entry, has_measurement
from et.results.run_files import read_descent
from et.results.tables import gather, render
from et.runs.record import git_commit
from et.utils.errors import UserError
from et.utils.files import write_atomically
from et.utils.paths import EXPERIMENTS, ROOT, command
from et.utils.startup import tolerate_encoding

# The paper's tables by task, in the order of the page's navigation, with the name of each within its task.
TASKS = {
    "Image completion": {14: "Without a module", 16: "Beside a ViT", 4: "Settings", 15: "Parameters"},
    "Anomaly detection": {1: "Results", 12: "Relations apart", 13: "Without a module", 5: "Data", 6: "Settings"},
    "Graphs": {
        2: "TUDataset", 7: "GNNBenchmark", 8: "TUDataset: data", 9: "TUDataset: settings",
        10: "GNNBenchmark: training", 11: "GNNBenchmark: architecture",
    },
}  # fmt: skip

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("dom.js", "charts.js", "tables.js", "cells.js", "viewer.js", "overview.js", "main.js")


def build(
    numbers: Sequence[int],
    roots: Sequence[Path],
    experiments: Path,
    figure_bytes: int,
    descents: Sequence[Path] = (),
    docs: str = "../docs",
) -> str:
    """The page of the tables ``numbers``.

    Args:
        numbers: Numbers of tables of the paper, in order.
        roots: Run folders, searched at any depth.
        experiments: Where the tableNN/ folders with recorded results are.
        figure_bytes: How much of the runs' pictures may go in.
        descents: Output folders of ``complete.py --report``, shown before the runs' descents; absent ones are left out.
        docs: Address of the documentation's folder, for the page's links.
    """
    evidence, runs = Evidence(figure_bytes), gather(roots, experiments)
    evidence.descents += [found for found in map(read_descent, descents) if found is not None]
    others = [(group[0], len(group), evidence.add_other(*name, group)) for name, group in other_runs(runs).items()]
    tables, shown = [], []
    for table in map(paper.load, numbers):
        document = render(table, runs, experiments)[0]
        grids = [(grid, column_kinds(table, grid), grid_rows(table, grid, evidence)) for grid in document.grids]
        lines = lines_of(table, runs.of(table.experiments())) if table.kind == "results" else None
        coverage = None if lines is None else asdict(coverage_of(table, lines))
        about = {key: getattr(table, key) for key in ("number", "title", "kind")} | {"task": task_of(table.number)}
        tables.append(about | {"coverage": coverage})
        shown.append(about | {"intro": document.intro, "grids": grids, "sections": document.sections})
    data = {
        "cells": evidence.cells, "runs": evidence.runs, "configurations": evidence.configurations,
        "descents": evidence.descents, "tasks": list(TASKS), "tables": tables, "train": command("train"),
    }  # fmt: skip
    environment = Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    return environment.get_template("index.html").render(
        style=(PAGE / "style.css").read_text(encoding="utf-8"),
        script="\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS),
        data=json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c"),
        tasks={task: {n: name for n, name in names.items() if n in numbers} for task, names in TASKS.items()},
        docs=docs,
        others=others,
        tables=shown,
        commit=git_commit()[:12],
    )


def task_of(number: int) -> str:
    """The task of a table of the paper, a key of :data:`TASKS`."""
    return next(task for task, names in TASKS.items() if number in names)


def other_runs(runs: Collection) -> dict[tuple[str, str], list[Run]]:
    """Runs that no table shows (such as the demo, and all on the user's own data), by experiment and protocol."""
    known = {name for number in paper.NUMBERS for name in paper.load(number).experiments()}
    found: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in sorted(runs.runs.values(), key=lambda run: (run.key, run.source)):
        if run.of_user_data or run.key.experiment not in known:
            found[run.key.experiment, run.key.protocol].append(run)
    return found


def column_kinds(table: paper.Table, grid: Grid) -> list[str]:
    """What each column is: the "head" of the rows, another "condition" that names them, or "number"."""
    head = 0 if table.kind == "statistics" else grid.heads - 1
    return [
        "head" if index == head else "condition" if index < grid.heads else "number"
        for index in range(len(grid.columns))
    ]


def grid_rows(table: paper.Table, grid: Grid, evidence: Evidence) -> list[dict[str, Any]]:
    """The rows of a grid for the page; the runs behind their entries are added to ``evidence``.

    Returns:
        For each row its ``classes``, ``where`` (what names it beside its head; on a phone it stands inside the head)
        and ``entries``: text, classes, and the name of the cell or None.
    """
    kinds = column_kinds(table, grid)
    named = len(table.condition_columns) or grid.heads - 1  # the columns in which rows are grouped
    rows, before = [], None
    for row in grid.rows:
        group = None if kinds[0] == "head" else [item.text for item in row[:named]]
        entries = []
        for index, (item, kind) in enumerate(zip(row, kinds, strict=True)):
            if kind == "condition" and index < named:
                kind += " grouped"
            elif kind == "number":  # on a phone, an empty entry is left out and a long one gets a line of its own
                kind += " empty" if item.text in ("", DASH.text) else " long" if len(item.text) > 24 else ""
            entries.append((item, kind, evidence.add_cell(table, item.cell) if isinstance(item.cell, Entry) else None))
        here = has_measurement(row) or "Counted" in grid.columns
        classes = ["measured"] * here + ["again"] * (group is not None and group == before)
        where = [item.text for item, kind in zip(row, kinds, strict=True) if kind == "condition" and item.text]
        rows.append({"classes": " ".join(classes), "where": " · ".join(where), "entries": entries})
        before = group
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the report page."""
    parser = argparse.ArgumentParser(prog="python -m et.results.report", description=main.__doc__)
    parser.add_argument("tables", nargs="*", type=int, help="table numbers; default: all")
    parser.add_argument("--runs", nargs="*", type=Path, default=[], help="run folders, searched at any depth")
    parser.add_argument("--experiments", type=Path, default=EXPERIMENTS, help="where tableNN/ folders are")
    parser.add_argument("--output", type=Path, default=Path("build/report.html"), help="the page")
    parser.add_argument("--descents", nargs="*", type=Path, default=[], help="outputs of complete.py --report")
    parser.add_argument("--figures-mb", type=float, default=12, help="how much of the runs' pictures may go in, in MB")
    options = parser.parse_args(arguments)
    try:
        for root in options.runs:
            if not root.is_dir():
                raise UserError(f"there is no folder {root}: --runs names folders with run folders in them")
        numbers = sorted(set(options.tables)) or paper.NUMBERS
        docs = Path(os.path.relpath(ROOT / "docs", options.output.absolute().parent)).as_posix()
        page = build(numbers, options.runs, options.experiments, int(options.figures_mb * 1e6), options.descents, docs)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.output, page)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"report: {relative(options.output)} ({len(page.encode()) / 1e6:.1f} MB), open it in any browser")
    return 0


if __name__ == "__main__":
    tolerate_encoding()
    sys.exit(main())
