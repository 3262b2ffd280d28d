"""One page for a reader of the paper: experiments/summary.md and summary.svg, rendered from recorded results.

python -m et.results.tables without numbers writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from et.results import paper
from et.results.collect import Collection
from et.results.coverage import coverage_of, line_differs, on_other_data, total
from et.results.formats import Document, Grid, Section, Text, to_markdown
from et.results.measured import PROTOCOLS, Line, Measured, best_baseline, expected_runs, lines_of, measure
from et.results.paper import Metric, PaperValue, Table
from et.results.results_table import DASH, Entry, measured_text, name_of, wanted_runs
from et.utils.files import write_atomically

INTRO = (
    "Each row is one method on one data set: mean ± standard deviation (n runs). With n = 1, ± is over repeated "
    "scorings or masks of one model. `held_out` tests on data that training and model selection never see. *Tuned* "
    "rows are an exception: their settings were chosen on seed 0, whose validation nodes are test nodes of other "
    "seeds. `released` follows the authors' protocol; in table 2 its accuracy is on training data. Rows on other data "
    "have no number of the paper beside them. The best other method is the one with the best "
    "test mean shown under `held_out` on the same data with the same settings, which favours it over ET. If it has "
    "more folds or seeds than ET, its mean is over ET's. "
    "Precision, learning-rate schedule and the encoding of atom and bond types may differ. "
    "Settings in brackets differ from the paper's, for example fewer epochs. "
    "Detectors under GADBench's protocol have [a table of their own](gadbench/table.md). The numbers "
    "of the paper's ET without a row here, by the first metric of each table, are listed below the rows; a star marks "
    "those whose data were run with other settings."
)

MARKS = {
    "paper": {"marker": "D", "markerfacecolor": "none", "color": "#b4500f"},
    "held_out": {"marker": "o", "color": "#2b5bc7"},
    "released": {"marker": "s", "markerfacecolor": "none", "color": "#0b6b60"},
    "best other method, held_out": {"marker": "|", "markersize": 9, "markeredgewidth": 2, "color": "#1f1d1a"},
}
OFFSETS = dict(zip(MARKS, (-0.27, -0.09, 0.27, 0.09), strict=True))  # of the marks of a row, in rows
CAPTION = (
    "The figure has the rows in per cent whose settings are the experiment's own. Bars are ± one standard deviation "
    "over runs, n the most runs behind a mark. Short runs, and rows in other units, are in the tables below."
)


@dataclass(frozen=True)
class SummaryRow:
    """A row of the summary: one line of a table, by the table's first metric.

    Attributes:
        cell: The paper's number; None if it has none or the line may not stand beside it.
        entries: What was measured under each protocol.
        baseline: The best baseline under ``held_out``; None if none was measured.
    """

    table: Table
    metric: Metric
    line: Line
    cell: PaperValue | None
    entries: dict[str, Entry]
    baseline: tuple[Line, Measured] | None

    @property
    def name(self) -> str:
        """Data set and training ratio."""
        return " ".join(self.line.condition.labels)


def summary_rows(table: Table, lines: Sequence[Line]) -> list[SummaryRow]:
    """The table's measured ET lines; of a table that compares only forms of ET, all of its measured lines."""
    found, expected = [], expected_runs(table.number)
    compared = any(not method.ours for method in table.methods)
    for metric in first_metrics(table):
        for line in lines:
            measured = {protocol: measure(table, metric, line, protocol) for protocol in PROTOCOLS}
            if not any(measured.values()) or not (line.method.ours or not compared):
                continue
            cell = None if line_differs(line) else table.cell(metric.name, line.condition.name, line.method.name)
            entries = {
                protocol: Entry(metric, line, protocol, measured[protocol], cell, wanted_runs(line, protocol, expected))
                for protocol in PROTOCOLS
            }
            others = [on_splits_of(line, other) for other in lines]
            others = [(other, m) for other in others if (m := measure(table, metric, other, "held_out")) is not None]
            found.append(SummaryRow(table, metric, line, cell, entries, best_baseline(line, others, metric)))
    return found


def on_splits_of(line: Line, other: Line) -> Line:
    """``other`` with its ``held_out`` runs on the splits of ``line`` only, if it has them all; else as it is."""
    splits = {run.split for run in line.of("held_out")}
    shared = tuple(run for run in other.of("held_out") if run.split in splits)
    return replace(other, runs=shared) if splits and splits == {run.split for run in shared} else other


def unmeasured_numbers(table: Table, rows: Sequence[SummaryRow]) -> list[str]:
    """The paper's numbers of ET that no row stands beside; a star marks data with rows of other settings."""
    beside = [row.cell for row in rows if row.cell is not None]
    tried = {(row.line.condition.name, row.line.method.name) for row in rows if not on_other_data(row.line)}
    cells = [
        (condition, table.cell(metric.name, condition.name, method.name))
        for metric in first_metrics(table)
        for condition in table.conditions
        for method in table.methods
        if method.ours
    ]
    several = len({cell.method for _, cell in cells if cell is not None}) > 1
    found = []
    for condition, cell in cells:
        if cell is not None and cell not in beside:
            star = "*" if (condition.name, cell.method) in tried else ""
            found.append(" ".join([*condition.labels, *[cell.method] * several, cell.printed]) + star)
    return found


def first_metrics(table: Table) -> list[Metric]:
    """The first measured metric of each condition, and those that say ``in_summary``."""
    measured = [metric for metric in table.metrics if metric.measured and metric.in_paper]
    firsts = [next((m for m in measured if m.applies(c.name)), None) for c in table.conditions]
    return [metric for metric in table.metrics if metric in firsts or metric.in_summary]


def summary_document(collection: Collection) -> tuple[Document, list[SummaryRow]]:
    """The page, and its rows for the figure."""
    grids, rows, coverages, without, unmeasured = [], [], [], [], []
    for number in paper.NUMBERS:
        table = paper.load(number)
        if table.kind != "results" or not any(metric.measured for metric in table.metrics):
            continue
        lines = lines_of(table, collection.of(table.experiments()))
        found, coverage = summary_rows(table, lines), coverage_of(table, lines)
        coverages.append(coverage)
        rows += found
        if missing := unmeasured_numbers(table, found):
            unmeasured.append(f"Table {number}: {', '.join(missing)}")
        if found:
            grids += summary_grids(table, found)
        else:
            without.append(f"Table {number}: {table.title}")
    everything = total(coverages)
    figure = "![Measured values beside the paper's, and on other data beside the best other method](summary.svg)"
    title = "Numbers of the paper's ET without a measurement of its data and settings"
    sections = [Section(title, unmeasured)] if unmeasured else []
    sections += [Section("Tables without a measurement", without)] if without else []
    intro = "\n\n".join([everything.sentence(), INTRO, figure, CAPTION])
    return Document("Results at a glance", intro, grids, sections), rows


def summary_grids(table: Table, rows: Sequence[SummaryRow]) -> list[Grid]:
    """A table's rows on the paper's data and those on other data, as two grids."""
    grids = []
    for other, where in ((False, "the paper's data"), (True, "other data")):
        chosen = [row for row in rows if on_other_data(row.line) is other]
        if not chosen:
            continue
        head = [*table.condition_columns, "Method", "Metric"]
        columns = [*head, *([] if other else ["Paper"]), *PROTOCOLS, "best other method, held_out"]
        entries = [summary_entries(row, other) for row in chosen]
        grids.append(Grid(f"Table {table.number}, {table.title}: on {where}", columns, entries, len(head)))
    return grids


def summary_entries(row: SummaryRow, other: bool) -> list[Text]:
    """The entries of a row; rows on other data have no column for the paper."""
    line, metric = row.line, row.metric
    unit = f" ({metric.unit})" if metric.unit else ""
    entries = [*map(Text, line.condition.labels), Text(name_of(line)), Text(f"{metric.label}{unit}")]
    if not other:
        entries.append(Text(row.cell.printed, value=row.cell.mean) if row.cell else DASH)
    entries += [measured_text(row.entries[protocol]) for protocol in PROTOCOLS]
    if row.baseline is None:
        return [*entries, DASH]
    baseline, measured = row.baseline
    shown = measured_text(Entry(metric, baseline, "held_out", measured, None, 0)).text
    return [*entries, Text(f"{shown} {baseline.method.name}", value=measured.mean)]


def write_summary(collection: Collection, experiments: Path) -> Path:
    """summary.md and summary.svg in ``experiments``; returns the page's path."""
    document, rows = summary_document(collection)
    experiments.mkdir(parents=True, exist_ok=True)
    write_atomically(experiments / "summary.md", to_markdown(document))
    draw_summary(rows, experiments / "summary.svg")
    return experiments / "summary.md"


def draw_summary(rows: Sequence[SummaryRow], path: Path) -> None:
    """Per cent on the horizontal axis: the paper's value, both protocols and the best baseline of every row.

    Bars are one standard deviation over runs. Rows of other units and of configurations that are not the experiment's
    own are left out.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    chosen = [row for row in rows if row.metric.unit == "%" and not row.line.label]
    values = [mean for row in chosen for mean, _ in marks_of(row).values()]
    left = max(0, min(values, default=0) - 6)
    parts = [
        ("On the paper's data", [row for row in chosen if not on_other_data(row.line)]),
        ("On other data", [row for row in chosen if on_other_data(row.line)]),
    ]
    heights = [max(1, len(part)) for _, part in parts]
    with pyplot.rc_context({"svg.hashsalt": "summary", "font.size": 10, "font.family": "DejaVu Sans"}):
        figure, axes = pyplot.subplots(
            len(parts), 1, figsize=(9, 2 + 0.42 * sum(heights)), height_ratios=heights, layout="constrained"
        )
        for axis, (title, part) in zip(axes, parts, strict=True):
            _draw_part(axis, title, part)
            axis.set_xlim(left, 103)
        axes[-1].set_xlabel("per cent; higher is better")
        handles = [pyplot.Line2D([], [], label=label, linestyle="", **style) for label, style in MARKS.items()]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(MARKS), frameon=False)
        figure.savefig(path, metadata={"Date": None}, facecolor="white")
        pyplot.close(figure)


def marks_of(row: SummaryRow) -> dict[str, tuple[float, float]]:
    """What a row of the figure shows: (value, standard deviation over runs), by the names of :data:`MARKS`."""
    found = {} if row.cell is None else {"paper": (row.cell.mean, 0.0)}
    measured = {name: entry.measured for name, entry in row.entries.items()}
    if row.baseline is not None:
        measured["best other method, held_out"] = row.baseline[1]
    for name, m in measured.items():
        if m is not None:
            found[name] = (m.mean, m.std if m.n > 1 and m.std is not None else 0.0)
    return found


def _draw_part(axis, title: str, rows: Sequence[SummaryRow]) -> None:
    axis.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axis.set_ylim(max(1, len(rows)) - 0.4, -0.6)
    axis.grid(axis="x", alpha=0.3)
    labels = []
    for row in rows:
        runs = max(entry.measured.n for entry in row.entries.values() if entry.measured is not None)
        method = f"{row.name}, {row.line.method.name}"
        labels.append(f"{method} (table {row.table.number}, {row.metric.label}, n = {runs})")
    axis.set_yticks(range(len(rows)), labels, fontsize=8)
    for at, row in enumerate(rows):
        for name, (value, deviation) in marks_of(row).items():
            place = at + OFFSETS[name]  # so that equal values do not cover each other
            bar = [value - deviation, value + deviation]
            axis.plot(bar, [place, place], color=MARKS[name]["color"], linewidth=1, alpha=0.6)
            axis.plot(value, place, linestyle="", **MARKS[name])
