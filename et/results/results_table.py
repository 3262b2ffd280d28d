"""A results table: measured values beside the paper's, as grids and as a long list of numbers."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from et.results.collect import Collection
from et.results.coverage import coverage_of, line_differs
from et.results.formats import Document, Grid, Section, Text, signed
from et.results.measured import (
    PROTOCOLS,
    Comparison,
    Line,
    Measured,
    best,
    comparisons,
    difference,
    expected_runs,
    lines_of,
    measure,
    missing,
    mixed_commits,
)
from et.results.paper import Metric, PaperValue, Table
from et.results.reference_tables import counted_grid, counted_rows

DASH = Text("–")
LEGEND = (
    "Measured: mean ± standard deviation (n runs). Δ is measured minus paper. held_out: the paper's model; no choice "
    "uses test data. released: the model and the evaluation of the authors' code. Bold: best in its column for that "
    "data. Against baseline: mean difference to a baseline on shared splits, p of a paired t-test. The splits of a "
    "data set overlap, so p is too small. The baseline is the method with the best mean of that column on the same "
    "data under the same protocol. This choice favours the baseline. Tuned methods are compared with tuned baselines, "
    "untuned with untuned."
)


@dataclass(frozen=True)
class Entry:
    """The runs behind an entry of a protocol's column; ``wanted`` is the number of runs in the table's sweep."""

    metric: Metric
    line: Line
    protocol: str
    measured: Measured | None
    paper: PaperValue | None
    wanted: int


def results_document(table: Table, collection: Collection) -> Document:
    """A results table: one grid per metric, with both protocols beside the paper's value."""
    lines, expected = lines_of(table, collection), expected_runs(table.number)
    grids = [
        grid
        for metric in table.metrics
        if metric.beside is None
        for grid in (
            results_grids(table, metric, lines, expected) if metric.measured else [counted_grid(table, metric)]
        )
    ]
    sections = [
        Section("Data variants", [f"{name}: {text}" for text, name in variant_names(lines).items()]),
    ]
    sections.append(Section("What the standard deviations are over", deviations(table, lines)))
    sections.append(Section("About the paper's table", table.notes))
    left = missing(table, lines, expected)
    sections.append(Section("Missing", [f"{command}  # {what}" for what, command in left], code=True))
    sections.append(Section("Reports", [*collection.reports(), *mixed_commits(lines)]))
    if not any(metric.measured for metric in table.metrics):
        intro = "Counted from the modules that the experiments build."
        return Document(f"Table {table.number}: {table.title}", intro, grids, [s for s in sections if s.points])
    intro = f"{coverage_of(table, lines).sentence()} {LEGEND}"
    return Document(f"Table {table.number}: {table.title}", intro, grids, [s for s in sections if s.points])


def results_grids(
    table: Table, metric: Metric, lines: Sequence[Line], expected: Mapping[tuple[str, str], int]
) -> list[Grid]:
    """The grid of one metric, and a folded one of the rows without a measurement that are not ET's.

    Both have the columns of the metrics that stand beside this one. Data sets with a measurement come first, and of
    each data set ET.
    """
    variants = variant_names(lines)
    lines = [line for line in lines if metric.applies(line.condition.name)]
    tops = {protocol: best_lines(table, metric, lines, protocol) for protocol in PROTOCOLS}
    against = {protocol: comparisons(table, metric, lines, protocol) for protocol in PROTOCOLS}
    with_comparison = [protocol for protocol in PROTOCOLS if against[protocol]]
    others = [(o, protocol) for o in table.metrics if o.beside == metric.name for protocol in o.protocols]
    rows = {}
    for index, line in enumerate(lines):
        cell = table.cell(metric.name, line.condition.name, line.method.name) if not line_differs(line) else None
        measured = {protocol: measure(table, metric, line, protocol) for protocol in PROTOCOLS}
        row = [Text(label) for label in line.condition.labels]
        row += [Text(data_of(line, variants)), Text(name_of(line))]
        row.append(DASH if cell is None else Text(cell.printed, cell.bold, cell.mean))
        for protocol in PROTOCOLS:
            entry = Entry(metric, line, protocol, measured[protocol], cell, wanted_runs(line, protocol, expected))
            row.append(measured_text(entry, bold=index in tops[protocol]))
        for other, protocol in others:
            found, wanted = measure(table, other, line, protocol), wanted_runs(line, protocol, expected)
            row.append(measured_text(Entry(other, line, protocol, found, None, wanted)))
        for protocol in PROTOCOLS:
            delta = difference(measured[protocol], cell)
            row.append(DASH if delta is None else Text(signed(delta, metric.digits), value=delta))
        row += [comparison_text(metric, against[protocol].get(index)) for protocol in with_comparison]
        rows[index] = row
    columns = [*table.condition_columns, "Data", "Method", "Paper", *PROTOCOLS]
    columns += [f"{protocol}, {other.label}" for other, protocol in others]
    columns += [f"Δ {name}" for name in PROTOCOLS]
    columns += [f"against baseline, {protocol}" for protocol in with_comparison]
    shown, folded = shown_and_folded(lines, {index for index, row in rows.items() if has_measurement(row)})
    heads = len(table.condition_columns) + 2
    grids = [
        Grid(caption_of(metric), columns, [rows[index] for index in shown], heads),
        Grid(f"{metric.label}: quoted or not measured", columns, [rows[index] for index in folded], heads, folded=True),
    ]
    return [without_empty_columns(grid) for grid in grids if grid.rows]


def caption_of(metric: Metric) -> str:
    """The metric's name, unit and direction."""
    unit = f" ({metric.unit})" if metric.unit else ""
    return f"{metric.label}{unit}" + {"max": ", higher is better", "min": ", lower is better"}.get(metric.direction, "")


def has_measurement(row: Sequence[Text]) -> bool:
    """True if an entry of the row stands for runs."""
    return any(isinstance(text.cell, Entry) and text.cell.measured is not None for text in row)


def shown_and_folded(lines: Sequence[Line], measured: set[int]) -> tuple[list[int], list[int]]:
    """Positions of the lines that are shown, in their order, and of those that are folded away.

    Shown are ET and what was measured. Data sets with a measurement come first; of each data set ET comes first, then
    the other methods. Within these groups the order is that of ``lines``.
    """
    with_runs = {lines[index].condition.name for index in measured}
    order = {name: at for at, name in enumerate(dict.fromkeys(line.condition.name for line in lines))}
    shown = [index for index, line in enumerate(lines) if line.method.ours or index in measured]

    def place(index: int) -> tuple[bool, int, bool, bool]:
        line = lines[index]
        name = line.condition.name
        return name not in with_runs, order[name], not line.method.ours, index not in measured

    return sorted(shown, key=place), [index for index in range(len(lines)) if index not in shown]


def without_empty_columns(grid: Grid) -> Grid:
    """``grid`` without the columns after "Paper" and the protocols' in which no row has an entry."""
    fixed = grid.heads + 1 + len(PROTOCOLS)
    kept = [at for at in range(len(grid.columns)) if at < fixed or any(row[at].text != DASH.text for row in grid.rows)]
    rows = [[row[at] for at in kept] for row in grid.rows]
    return Grid(grid.caption, [grid.columns[at] for at in kept], rows, grid.heads, grid.folded)


def wanted_runs(line: Line, protocol: str, expected: Mapping[tuple[str, str], int]) -> int:
    """Number of runs that the table's sweep has for an entry; 0 if the row is not in the sweep."""
    return 0 if line_differs(line) else expected.get((line.method.experiment_for(line.condition.name), protocol), 0)


def best_lines(table: Table, metric: Metric, lines: Sequence[Line], protocol: str) -> set[int]:
    """Indices of the best rows with the same condition and data, without other configurations."""
    found = set()
    for group in {(line.condition.name, line.variant) for line in lines}:
        members = [line for line in lines if (line.condition.name, line.variant) == group and not line.label]
        measured = [(line, m) for line in members if (m := measure(table, metric, line, protocol)) is not None]
        top = best(measured, metric) if len(measured) > 1 else []
        found |= {index for index, line in enumerate(lines) if any(line is one for one in top)}
    return found


def variant_names(lines: Sequence[Line]) -> dict[str, str]:
    """A short name for each data variant, in order of appearance."""
    texts = dict.fromkeys(line.variant for line in lines if line.variant)
    return {text: f"variant {number}" for number, text in enumerate(texts, 1)}


def name_of(line: Line) -> str:
    """The method, with the settings that are not the experiment's own: "ET (Ours) (max_epochs=20)".

    Of a setting's key the last part is shown; table.csv has the whole key.
    """
    name = line.method.name + (" (quoted)" if line.method.quoted and line.condition.in_paper else "")
    settings = [
        "without " * part.startswith("~") + re.sub(r"^[^=]*\.", "", part.lstrip("+~"))
        for part in line.label.split(", ")
        if part
    ]
    return name + (f" ({', '.join(settings)})" if settings else "")


def data_of(line: Line, variants: dict[str, str]) -> str:
    """Entry of the column "Data"."""
    if line.variant:
        return variants[line.variant]
    return "exact" if line.runs else ""


def measured_text(entry: Entry, bold: bool = False) -> Text:
    """ "89.6 ± 1.0 (n = 5)"; "missing" if the sweep has the cell, else a dash."""
    measured, digits = entry.measured, entry.metric.digits
    if measured is None:
        return Text("missing", cell=entry) if entry.wanted else DASH
    spread = "" if measured.std is None else f" ± {measured.std:.{digits}f}"
    of = f" of {entry.wanted}" if measured.n < entry.wanted else ""
    return Text(f"{measured.mean:.{digits}f}{spread} (n = {measured.n}{of})", bold, measured.mean, entry)


def comparison_text(metric: Metric, comparison: Comparison | None) -> Text:
    """ "+0.8 to GT (p = 0.031, n = 5)"."""
    if comparison is None:
        return DASH
    p = "" if comparison.p_value is None else f"p = {comparison.p_value:.2g}, "
    text = f"{signed(comparison.difference, metric.digits)} to {comparison.baseline} ({p}n = {comparison.n})"
    return Text(text, value=comparison.difference)


def deviations(table: Table, lines: Sequence[Line]) -> list[str]:
    """Explanations of ± in the paper and in each column."""
    points = [f"paper: {table.deviation['paper']}"] if "paper" in table.deviation else []
    for protocol in PROTOCOLS:
        kinds = {
            measured.over
            for metric in table.metrics
            for line in lines
            if (measured := measure(table, metric, line, protocol)) is not None and measured.over
        }
        points += [f"{protocol}: {'; '.join(sorted(kinds))}"] if kinds else []
    return points


def results_csv(table: Table, collection: Collection) -> str:
    """Every number of a results table in long form: one row per condition, method, metric and protocol."""
    lines, expected = lines_of(table, collection), expected_runs(table.number)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["table", "metric", "unit", "condition", *table.condition_columns, "method", "quoted", "experiment", "protocol",
         "data", "configuration", "mean", "deviation", "n", "deviation_over", "paper_mean", "paper_deviation",
         "difference", "best", "baseline", "baseline_difference", "baseline_n", "baseline_p", "runs"]
    )  # fmt: skip
    for metric in (metric for metric in table.metrics if metric.measured):
        shown = [line for line in lines if metric.applies(line.condition.name)]
        for protocol in metric.protocols:
            top, against = best_lines(table, metric, shown, protocol), comparisons(table, metric, shown, protocol)
            for index, line in enumerate(shown):
                cell = table.cell(metric.name, line.condition.name, line.method.name)
                cell = None if line_differs(line) else cell
                measured, experiment = (
                    measure(table, metric, line, protocol),
                    line.method.experiment_for(line.condition.name),
                )
                if measured is None and cell is None and not expected.get((experiment, protocol)):
                    continue
                writer.writerow(
                    [table.number, metric.name, metric.unit, line.condition.name, *line.condition.labels,
                     line.method.name, line.method.quoted, experiment, protocol,
                     line.variant or ("exact" if line.runs else ""), line.label,
                     *_measured_fields(measured), cell and cell.mean, cell and cell.std,
                     _rounded(difference(measured, cell)), index in top, *_comparison_fields(against.get(index)),
                     " ".join(run.record["run_id"] for run in measured.runs) if measured else ""]
                )  # fmt: skip
    for metric in (metric for metric in table.metrics if not metric.measured):
        for condition, method, cell, value in counted_rows(table, metric):
            writer.writerow(
                [table.number, metric.name, metric.unit, condition.name, *condition.labels, method.name, method.quoted,
                 method.experiment_for(condition.name), "counted", "", "", _rounded(value), "", "", "",
                 cell and cell.mean, "", _rounded(None if value is None or cell is None else value - cell.mean),
                 "", "", "", "", "", ""]
            )  # fmt: skip
    return out.getvalue()


def _measured_fields(measured: Measured | None) -> list[object]:
    if measured is None:
        return ["", "", 0, ""]
    return [_rounded(measured.mean), _rounded(measured.std), measured.n, measured.over]


def _comparison_fields(comparison: Comparison | None) -> list[object]:
    if comparison is None:
        return ["", "", "", ""]
    return [comparison.baseline, _rounded(comparison.difference), comparison.n, _rounded(comparison.p_value)]


def _rounded(value: float | None) -> object:
    return "" if value is None else float(f"{value:.6g}")
