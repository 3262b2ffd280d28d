"""The report page: python -m et.results.report [1 2 ...] [--runs runs] [--output build/report.html]

One self-contained HTML page with the paper's tables: no network, no build step, opens from file://. It is made from the
recorded results in experiments/ and, with --runs, from run folders, which also have pictures, full curves and recorded
descents.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from et.results import paper
from et.results.collect import Collection, Run, relative
from et.results.evidence import Evidence
from et.results.formats import PAGE, Document, Grid, Text, templates
from et.results.results_table import Entry
from et.results.run_files import read_descent
from et.results.tables import gather, render
from et.runs.record import git_commit
from et.utils.errors import UserError
from et.utils.files import write_atomically
from et.utils.paths import EXPERIMENTS
from et.utils.startup import tolerate_encoding

SCRIPTS = ("dom.js", "charts.js", "tables.js", "cells.js", "viewer.js", "overview.js", "main.js")


def build(
    numbers: Sequence[int], roots: Sequence[Path], experiments: Path, figure_bytes: int, descents: Sequence[Path] = ()
) -> str:
    """The page of the tables ``numbers``.

    Args:
        numbers: numbers of tables of the paper, in order.
        roots: run folders, searched at any depth.
        experiments: where the tableNN/ folders with recorded results are.
        figure_bytes: how much of the runs' pictures may go in.
        descents: output folders of ``complete.py --report``, shown before the runs' descents; absent ones are left out.
    """
    evidence, runs = Evidence(figure_bytes), gather(roots, experiments)
    evidence.descents += [found for found in map(read_descent, descents) if found is not None]
    others = others_html(other_runs(runs), evidence)
    tables = [paper.load(number) for number in numbers]
    sections = [table_html(table, render(table, runs, experiments)[0], evidence) for table in tables]
    data = {
        "cells": evidence.cells,
        "runs": evidence.runs,
        "configurations": evidence.configurations,
        "descents": evidence.descents,
        "tables": [{"number": table.number, "title": table.title, "kind": table.kind} for table in tables],
    }
    return (
        templates()
        .get_template("index.html")
        .render(
            style=Markup((PAGE / "style.css").read_text(encoding="utf-8")),
            script=Markup("\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS)),
            data=Markup(json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")),
            numbered=tables,
            others=others,
            tables=Markup("\n").join(sections),
            commit=git_commit()[:12],
        )
    )


def other_runs(runs: Collection) -> dict[tuple[str, str], list[Run]]:
    """Runs that no table shows (such as the demo, and all on the user's own data), by experiment and protocol."""
    known = {name for number in paper.NUMBERS for name in paper.load(number).experiments()}
    found: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in sorted(runs.runs.values(), key=lambda run: (run.key, run.source)):
        if run.of_user_data or run.key.experiment not in known:
            found[run.key.experiment, run.key.protocol].append(run)
    return found


def others_html(groups: Mapping[tuple[str, str], Sequence[Run]], evidence: Evidence) -> str:
    """Table of the runs that are in none of the paper's tables; empty if there are none."""
    rows = [
        {
            "experiment": experiment,
            "protocol": protocol,
            "variant": runs[0].variant or "exact",
            "count": Text(f"{len(runs)} run{'s' if len(runs) > 1 else ''}", value=len(runs)),
            "cell": evidence.add_other(experiment, protocol, runs),
        }
        for (experiment, protocol), runs in groups.items()
    ]
    return templates().get_template("sections.html").module.others(rows) if rows else ""


def table_html(table: paper.Table, document: Document, evidence: Evidence) -> str:
    """Section of one table of the paper."""
    grids = [grid_view(table, grid, evidence) for grid in document.grids]
    return templates().get_template("sections.html").module.section(table, document.intro, grids, document.sections)


def grid_view(table: paper.Table, grid: Grid, evidence: Evidence) -> dict[str, Any]:
    """A grid for the template.

    One of the columns that name a row is its ``head``; on a phone the others are shown inside that head (``where``).
    """
    head = 0 if table.kind == "statistics" else grid.heads - 1
    grouped = len(table.condition_columns) or grid.heads - 1  # the columns in which rows are grouped
    rows, before = [], None
    for row in grid.rows:
        group = [item.text for item in row[:grouped]] if head else None
        again, before = group is not None and group == before, group
        measured = any(isinstance(item.cell, Entry) and item.cell.measured is not None for item in row)
        where = " · ".join(item.text for n, item in enumerate(row[: grid.heads]) if n != head and item.text)
        entries = [
            {
                "text": item,
                "where": where,
                "cell": evidence.add_cell(table, item.cell) if isinstance(item.cell, Entry) else None,
            }
            for item in row
        ]
        classes = " ".join(name for name, is_so in (("measured", measured), ("again", again)) if is_so)
        rows.append({"classes": classes, "entries": entries})
    return {
        "caption": grid.caption,
        "columns": grid.columns,
        "head": head,
        "heads": grid.heads,
        "grouped": grouped,
        "rows": rows,
    }


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
        page = build(numbers, options.runs, options.experiments, int(options.figures_mb * 1e6), options.descents)
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
