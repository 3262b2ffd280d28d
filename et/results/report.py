"""The report page: python -m et.results.report [1 2 ...] [--runs runs] [--output build/report.html]

One self-contained HTML page with the paper's tables: no network, no build step, opens from file://. It is made from the
recorded results in experiments/ and, with --runs, from run folders, which also have pictures, full curves and recorded
descents.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from et.results import paper
from et.results.cells import lines_of
from et.results.collect import Collection, Run, relative
from et.results.evidence import Evidence
from et.results.formats import Document, Grid, Section, Text
from et.results.results_table import DASH, Entry
from et.results.run_files import read_descent
from et.results.standing import standing_of
from et.results.tables import gather, render
from et.runs.record import git_commit
from et.utils.errors import UserError
from et.utils.files import write_atomically
from et.utils.paths import EXPERIMENTS, ROOT
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
    others = others_html(other_runs(runs), evidence)
    tables = [paper.load(number) for number in numbers]
    sections, standings = [], {}
    for table in tables:
        sections.append(table_html(table, numbers, render(table, runs, experiments)[0], evidence))
        if table.kind == "results":
            standings[table.number] = standing_of(table, lines_of(table, runs.of(table.experiments())))
    data = {
        "cells": evidence.cells,
        "runs": evidence.runs,
        "configurations": evidence.configurations,
        "descents": evidence.descents,
        "tasks": list(TASKS),
        "tables": [
            {
                "number": table.number, "title": table.title, "kind": table.kind, "task": task_of(table.number),
                "standing": asdict(standings[table.number]) if table.number in standings else None,
            }
            for table in tables
        ],
    }  # fmt: skip
    return fill(
        (PAGE / "index.html").read_text(encoding="utf-8"),
        {
            "style": (PAGE / "style.css").read_text(encoding="utf-8"),
            "script": "\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS),
            "data": json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c"),
            "navigation": navigation_html(numbers),
            "docs": html.escape(docs, quote=True),
            "others": others,
            "tables": "\n".join(sections),
            "commit": html.escape(git_commit()[:12]),
        },
    )


def task_of(number: int) -> str:
    """The task of a table of the paper, a key of :data:`TASKS`."""
    return next(task for task, names in TASKS.items() if number in names)


def navigation_html(numbers: Sequence[int]) -> str:
    """A link for each task that has one of the tables ``numbers``, to the first of them."""
    items = []
    for task, names in TASKS.items():
        there = [number for number in names if number in numbers]
        if there:
            items.append(
                f'<li><a href="#table-{there[0]}" data-task="{html.escape(task)}">{html.escape(task)}</a></li>'
            )
    return "\n".join(items)


def tabs_html(number: int, numbers: Sequence[int]) -> str:
    """Links between the tables of one task; empty if it has one table only."""
    task = task_of(number)
    there = [other for other in TASKS[task] if other in numbers]
    if len(there) < 2:
        return ""
    items = [
        f'<li><a href="#table-{other}"{" aria-current=page" if other == number else ""}>'
        f"{html.escape(TASKS[task][other])} <small>table {other}</small></a></li>"
        for other in there
    ]
    name = html.escape(f"{task}, from table {number}")
    return f'<nav class="tabs" aria-label="{name}"><ul>{"".join(items)}</ul></nav>'


def fill(template: str, parts: Mapping[str, str]) -> str:
    """Replace each {{name}} in ``template``; inserted text is not searched again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


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
    if not groups:
        return ""
    rows = []
    for (experiment, protocol), runs in groups.items():
        name = evidence.add_other(experiment, protocol, runs)
        count = f"{len(runs)} run{'s' if len(runs) > 1 else ''}"
        rows.append(
            f'<tr><th scope="row">{html.escape(experiment)}</th><td>{html.escape(protocol)}</td>'
            f"<td>{html.escape(runs[0].variant or 'exact')}</td>"
            f'<td class="number" data-value="{len(runs)}">{cell_button(name, count)}</td></tr>'
        )
    head = "".join(_column(text) for text in ("Experiment", "Protocol", "Data")) + _column("Runs", "number")
    return (
        '<section aria-labelledby="others-title"><h2 id="others-title">Runs outside the paper’s tables</h2>'
        '<div class="wide"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def table_html(table: paper.Table, numbers: Sequence[int], document: Document, evidence: Evidence) -> str:
    """The section of one table of the paper; ``numbers`` are the page's tables."""
    name = f"table-{table.number}"
    parts = [
        f'<section class="paper-table {table.kind}" id="{name}" aria-labelledby="{name}-title" '
        f'data-task="{html.escape(task_of(table.number))}">',
        tabs_html(table.number, numbers),
        f'<p class="eyebrow">Table {table.number}</p>',
        f'<h1 class="title" id="{name}-title" tabindex="-1">{html.escape(table.title)}</h1>',
        f'<p class="intro">{html.escape(document.intro)}</p>' if document.intro else "",
        *(grid_html(table, grid, evidence) for grid in document.grids),
        *(section_html(section) for section in document.sections),
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def grid_html(table: paper.Table, grid: Grid, evidence: Evidence) -> str:
    """One grid. One of the columns that name a row is its head; on a phone the others are shown inside that head."""
    head = 0 if table.kind == "statistics" else grid.heads - 1
    named = len(table.condition_columns) or grid.heads - 1  # the columns in which rows are grouped
    rows, before = [], None
    for row in grid.rows:
        group = [item.text for item in row[:named]] if head else None
        again, before = group is not None and group == before, group
        entries = [_entry(table, grid, row, index, head, evidence) for index in range(len(row))]
        measured = any(isinstance(item.cell, Entry) and item.cell.measured is not None for item in row)
        classes = " ".join(name for name, is_so in (("measured", measured), ("again", again)) if is_so)
        rows.append(f'<tr class="{classes}">{"".join(entries)}</tr>')
    caption = html.escape(grid.caption)
    columns = [
        _column(name, "head" if index == head else "condition" if index < grid.heads else "number")
        for index, name in enumerate(grid.columns)
    ]
    shown = (
        f'<div class="wide" tabindex="0" role="region" aria-label="{caption}"><table>'
        f"<caption>{caption}</caption><thead><tr>{''.join(columns)}</tr></thead>\n<tbody>\n"
        + "\n".join(rows)
        + "\n</tbody></table></div>"
    )
    if not grid.folded:
        return shown
    return (
        f'<details class="folded"><summary>{caption} <span class="count">{len(rows)}</span></summary>{shown}</details>'
    )


def _column(name: str, kind: str = "head") -> str:
    sort = f'<button type="button" class="sort">{html.escape(name)}</button>'
    return f'<th scope="col" aria-sort="none" class="{kind}">{sort}</th>'


def _entry(table: paper.Table, grid: Grid, row: Sequence[Text], index: int, head: int, evidence: Evidence) -> str:
    item, heads = row[index], grid.heads
    text = html.escape(item.text)
    text = f"<strong>{text}</strong>" if item.bold and text else text
    if index == head:
        where = " · ".join(other.text for n, other in enumerate(row[:heads]) if n != head and other.text)
        return f'<th scope="row"><span class="where">{html.escape(where)}</span>{text}</th>'
    if index < heads:
        grouped = index < (len(table.condition_columns) or heads - 1)
        return f'<td class="condition{" grouped" if grouped else ""}">{text}</td>'
    value = "" if item.value is None else f' data-value="{item.value:.6g}"'
    if isinstance(item.cell, Entry):
        text = cell_button(evidence.add_cell(table, item.cell), item.text, item.bold)
    # On a phone a row is a card, and each entry stands beside its column's name; what is empty is left out there.
    label, kind = html.escape(grid.columns[index]), "number"
    kind += " empty" if item.text in ("", DASH.text) else " long" if len(item.text) > 24 else ""
    return f'<td class="{kind}" data-label="{label}"{value}>{text}</td>'


def cell_button(name: str, text: str, bold: bool = False) -> str:
    """Button that opens a cell; the number of runs is smaller than the value."""
    shown = re.sub(r"(\(n = .*\))$", r"<small>\1</small>", html.escape(text))
    kind = "cell missing" if text == "missing" else "cell"
    shown = f"<strong>{shown}</strong>" if bold else shown
    return f'<button type="button" class="{kind}" data-cell="{name}" aria-haspopup="dialog">{shown}</button>'


def section_html(section: Section) -> str:
    """Collapsed section below the grids."""
    if section.code:
        body = '<pre tabindex="0"><code>' + html.escape("\n".join(section.points)) + "</code></pre>"
    else:
        body = "<ul>" + "".join(f"<li>{html.escape(point)}</li>" for point in section.points) + "</ul>"
    count = f' <span class="count">{len(section.points)}</span>'
    return f"<details><summary>{html.escape(section.heading)}{count}</summary>{body}</details>"


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
