"""Tables that need no training: configurations (4, 6, 9, 10, 11), statistics (5, 8) and parameter counts (15)."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from et.results.formats import Document, Grid, Section, Text, signed
from et.results.paper import Condition, Method, Metric, PaperValue, Setting, Table
from et.results.settings import Compared, compare, count_parameters, has_experiment

ABSENT = "–"


def counted_rows(table: Table, metric: Metric) -> list[tuple[Condition, Method, PaperValue | None, float | None]]:
    """The paper's and the counted value of every cell; the counted one is None if there is no experiment."""
    rows = []
    for condition in table.conditions:
        for method in table.methods:
            name = method.experiment_for(condition.name)
            cell = table.cell(metric.name, condition.name, method.name)
            value = _counted(name, metric) if name is not None and has_experiment(name) else None
            if cell is not None or value is not None:
                rows.append((condition, method, cell, value))
    return rows


def _counted(experiment: str, metric: Metric) -> float | None:
    count = count_parameters(experiment).get(metric.key)
    return None if count is None else count * metric.scale


def counted_grid(table: Table, metric: Metric) -> Grid:
    """Grid of parameters counted from the modules that the experiments build."""
    rows = []
    for condition, method, cell, value in counted_rows(table, metric):
        printed = Text(ABSENT) if cell is None else Text(cell.printed, cell.bold, cell.mean)
        experiment = method.experiment_for(condition.name)
        counted = f"no experiment {experiment}" if value is None else f"{value:.{metric.digits}f}"
        exact = ABSENT if value is None else f"{round(value / metric.scale):,}"
        delta = ABSENT if value is None or cell is None else signed(value - cell.mean, metric.digits)
        numbers = Text(counted, value=value), Text(exact, value=value), Text(delta)
        rows.append([*map(Text, condition.labels), Text(method.name), printed, *numbers])
    columns = [*table.condition_columns, "Method", "Paper", "Counted", "Exactly", "Δ"]
    return Grid(f"{metric.label} ({metric.unit})", columns, rows, heads=len(table.condition_columns) + 1)


def configuration_document(table: Table) -> Document:
    """The paper's settings, with a note on each one whose value differs in an experiment."""
    columns = list(dict.fromkeys(setting.column for setting in table.settings))
    by_parameter: dict[tuple[str, str], dict[str, tuple[Setting, list[Compared]]]] = {}
    for setting in table.settings:
        by_parameter.setdefault((setting.section, setting.parameter), {})[setting.column] = (setting, compare(setting))
    rows = [
        [Text(section), Text(parameter), *(setting_text(*found[column]) for column in columns)]
        for (section, parameter), found in by_parameter.items()
    ]
    compared = [(setting, c) for found in by_parameter.values() for setting, values in found.values() for c in values]
    agree, differ = (sum(c.agrees is verdict for _, c in compared) for verdict in (True, False))
    absent = sorted({name for s in table.settings for name in s.experiments if not has_experiment(name)})
    why = {f"{s.parameter} is not compared: {c.why or s.why}" for s, c in compared if c.agrees is None}
    points = [f"{agree} values of the experiment files agree with the paper, {differ} do not"]
    points += [f"no experiment file: {', '.join(absent)}"] if absent else []
    sections = [Section("Compared", points + sorted(why))]
    if table.search_space:
        space = [f"{name}: {', '.join(map(str, values))}" for name, values in table.search_space.items()]
        sections.append(Section("Range that was searched", space))
    sections.append(Section("About the paper's table", table.notes))
    intro = "Each value as the paper prints it; “here” follows where the experiment file has another one."
    grid = Grid("Settings", ["Section", "Parameter", *columns], rows, heads=2)
    return Document(f"Table {table.number}: {table.title}", intro, [grid], [s for s in sections if s.points])


def setting_text(setting: Setting, compared: list[Compared]) -> Text:
    """The paper's value, and in bold the differing values of experiments."""
    others = {str(c.value) for c in compared if c.agrees is False}
    counted = sorted({c.value for c in compared if setting.counted})
    if counted:
        here = (
            f"{counted[0]:,}"
            if len(counted) == 1
            else f"{sum(c.value for c in compared) / len(compared):,.0f} on average"
        )
        return Text(f"{setting.printed}; counted {here}")
    text = _printed(setting.printed)
    return Text(f"{text}; here {', '.join(sorted(others))}", bold=True) if others else Text(text)


def _printed(text: str) -> str:
    return {"True": "Yes", "False": "No"}.get(text, text)


def configuration_csv(table: Table) -> str:
    """One row per setting and experiment."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "section", "parameter", "column", "experiment", "paper", "here", "agrees", "remark"])
    for setting in table.settings:
        for name in setting.experiments:
            found = next((c for c in compare(setting) if c.experiment == name), None)
            here = ["", "", "no experiment file"] if found is None else [found.value, found.agrees, found.why]
            writer.writerow(
                [table.number, setting.section, setting.parameter, setting.column, name, setting.value, *here]
            )
    return out.getvalue()


def statistics_rows(
    table: Table, counted: Mapping[str, Mapping[str, Any]]
) -> list[tuple[Condition, Metric, PaperValue | None, float | None]]:
    """The paper's and the counted value of every data set that is in the paper or was counted."""
    rows = []
    for condition in table.conditions:
        metrics = counted.get(condition.name, {}).get("metrics", {})
        for metric in table.metrics if condition.in_paper or metrics else ():
            value = metrics.get(metric.key)
            scaled = None if value is None else value * metric.scale
            rows.append((condition, metric, table.cell(metric.name, condition.name, "counted"), scaled))
    return rows


def statistics_document(table: Table, counted: Mapping[str, Mapping[str, Any]]) -> Document:
    """The paper's statistics of the data beside those counted on local files."""
    rows: dict[str, list[Text]] = {}
    for condition, metric, cell, value in statistics_rows(table, counted):
        known = counted.get(condition.name)
        variant = "not here" if known is None else known["dataset"]["variant"]
        start = [*map(Text, condition.labels), Text("exact" if variant.startswith("exact") else variant)]
        row = rows.setdefault(condition.name, start)
        printed, here = cell.printed if cell else ABSENT, ABSENT if value is None else f"{value:.{metric.digits}f}"
        differs = cell is not None and value is not None and f"{cell.mean:.{metric.digits}f}" != here
        row += [Text(printed, value=cell.mean if cell else None), Text(here, differs, value)]
    columns = [*table.condition_columns, "Data"]
    columns += [f"{metric.label}, {where}" for metric in table.metrics for where in ("paper", "here")]
    absent = [c.name for c in table.conditions if c.in_paper and c.name not in counted]
    command = f"python -m et.results.statistics {table.number}"
    sections = [Section("About the paper's table", table.notes)]
    if absent:
        sections.append(Section("Missing", [f"{command}  # once the data of {', '.join(absent)} are here"], code=True))
    grid = Grid("Counted from the data", columns, list(rows.values()), heads=len(table.condition_columns) + 1)
    intro = f"Counted by {command}; bold where the count is not the paper's."
    return Document(f"Table {table.number}: {table.title}", intro, [grid], sections)


def statistics_csv(table: Table, counted: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per data set and quantity."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", *table.condition_columns, "condition", "data", "metric", "unit", "paper", "here"])
    for condition, metric, cell, value in statistics_rows(table, counted):
        variant = counted.get(condition.name, {}).get("dataset", {}).get("variant", "")
        paper = "" if cell is None else cell.mean
        here = "" if value is None else float(f"{value:.6g}") if metric.digits else round(value)
        writer.writerow(
            [table.number, *condition.labels, condition.name, variant, metric.name, metric.unit, paper, here]
        )
    return out.getvalue()
