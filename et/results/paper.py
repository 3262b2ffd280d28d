"""The paper's numbers, read from paper/tableNN.yaml: the cells of each table and the experiment that fills each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from et.utils.errors import UserError

FOLDER = Path(__file__).parent / "paper"
NUMBERS = (1, 2, *range(4, 17))  # table 3 is a list of symbols

_NUMBER = r"\d+(?:\.\d+)?"
_PRINTED = re.compile(rf"(?P<mean>{_NUMBER})(?: \+ (?P<more>{_NUMBER}))?(?: ± (?P<std>{_NUMBER}))?(?P<bold> bold)?")


@dataclass(frozen=True)
class Metric:
    """A quantity of a table.

    Its name in a run's record is ``key``; a recorded value times ``scale`` is in ``unit``. ``spread`` is the name of
    its deviation within one run; if None, the key with ``_std``. A metric ``beside`` another one has its columns in
    that metric's grid. One that is ``in_summary`` stands in the summary beside the table's first.
    """

    name: str
    label: str
    key: str
    unit: str
    direction: Literal["max", "min", "none"]
    scale: float = 1.0
    digits: int = 1
    conditions: tuple[str, ...] | None = None  # None: all of the table's
    in_paper: bool = True
    in_summary: bool = False
    spread: str | None = None
    protocols: tuple[str, ...] = ("held_out", "released")  # those that record it
    beside: str | None = None

    @property
    def measured(self) -> bool:
        """True if runs record it; False if it is counted from the modules of an experiment."""
        return self.key.startswith("test/")

    def applies(self, condition: str) -> bool:
        """True if the table has this metric under ``condition``."""
        return self.conditions is None or condition in self.conditions


@dataclass(frozen=True)
class Condition:
    """A condition of the comparison (a data set, a training ratio); ``labels`` fill the table's first columns."""

    name: str
    labels: tuple[str, ...]
    in_paper: bool = True


# Ending of the experiments whose settings a search has found.
TUNED = "_tuned"


@dataclass(frozen=True)
class Method:
    """A row of the comparison. ``experiment`` is a template, ``{condition}_gt``, or None if there is no experiment for
    it.
    """

    name: str
    experiment: str | None
    quoted: bool = False  # the paper has its numbers from prior work
    ours: bool = False  # an Energy Transformer, not a baseline
    in_paper: bool = True

    @property
    def tuned(self) -> bool:
        """True if its settings come from a search (:mod:`et.results.searches`)."""
        return self.experiment is not None and self.experiment.endswith(TUNED)

    def experiment_for(self, condition: str) -> str | None:
        """Name of the experiment that fills this method's cells under ``condition``."""
        return None if self.experiment is None else self.experiment.format(condition=condition)


@dataclass(frozen=True)
class PaperValue:
    """One number of the paper, as printed and as numbers in the metric's unit."""

    metric: str
    condition: str
    method: str
    printed: str
    mean: float
    std: float | None
    bold: bool
    quoted: bool


@dataclass(frozen=True)
class Setting:
    """One entry of a configuration table: ``value`` of ``parameter`` in ``experiments``, under one of ``keys``."""

    parameter: str
    column: str
    experiments: tuple[str, ...]
    value: Any
    printed: str
    keys: tuple[str, ...]
    has_absent: bool
    absent: Any
    section: str
    why: str
    counted: str


@dataclass(frozen=True)
class Table:
    """A table of the paper: ``kind`` results or statistics has ``cells``, kind configuration has ``settings``."""

    number: int
    title: str
    kind: Literal["results", "statistics", "configuration"]
    condition_columns: tuple[str, ...]
    conditions: tuple[Condition, ...]
    methods: tuple[Method, ...]
    metrics: tuple[Metric, ...]
    cells: tuple[PaperValue, ...]
    settings: tuple[Setting, ...]
    deviation: Mapping[str, str]
    notes: tuple[str, ...]
    search_space: Mapping[str, list[Any]]

    def cell(self, metric: str, condition: str, method: str) -> PaperValue | None:
        """The paper's number for a metric, condition and method; None if the paper has none."""
        wanted = (metric, condition, method)
        return next((c for c in self.cells if (c.metric, c.condition, c.method) == wanted), None)

    def experiments(self) -> dict[str, tuple[Condition, Method]]:
        """Every experiment that fills a cell of this table, by name."""
        return {
            name: (condition, method)
            for condition in self.conditions
            for method in self.methods
            if (name := method.experiment_for(condition.name)) is not None
        }


def parse_printed(printed: str | float) -> tuple[float, float | None, bool]:
    """(mean, deviation, bold) of "63.0 ± 0.6 bold"; "18 + 3" is 21.

    Raises:
        ValueError: The text is not of this form.
    """
    match = _PRINTED.fullmatch(str(printed))
    if match is None:
        raise ValueError(f"not a printed value: {printed!r} (expected for example '63.0 ± 0.6 bold')")
    mean = float(match["mean"]) + float(match["more"] or 0)
    return mean, None if match["std"] is None else float(match["std"]), match["bold"] is not None


@cache
def load(number: int) -> Table:
    """Read table ``number`` of the paper.

    Raises:
        UserError: The paper has no such table, or it does not hold numbers or settings.
        ValueError: The table's file is inconsistent (a row is too short, a value is invalid).
    """
    if number not in NUMBERS:
        raise UserError(f"there is no table {number}: choose among {', '.join(map(str, NUMBERS))} (3 lists symbols)")
    raw = yaml.safe_load((FOLDER / f"table{number:02d}.yaml").read_text(encoding="utf-8"))
    conditions = [Condition(name, tuple(labels)) for name, labels in raw.get("conditions", {}).items()]
    conditions += [
        Condition(name, tuple(labels), in_paper=False) for name, labels in raw.get("extra_conditions", {}).items()
    ]
    methods = [_method(name, entry) for name, entry in raw.get("methods", {}).items()]
    methods += [_method(name, entry, in_paper=False) for name, entry in raw.get("extra_methods", {}).items()]
    metrics = [_metric(name, entry) for name, entry in raw.get("metrics", {}).items()]
    metrics += [_metric(name, entry, in_paper=False) for name, entry in raw.get("extra_metrics", {}).items()]
    if any(len(condition.labels) != len(raw["condition_columns"]) for condition in conditions):
        raise ValueError(f"table {number}: a condition needs one label for each of {raw['condition_columns']}")
    return Table(
        number=raw["table"],
        title=raw["title"],
        kind=raw["kind"],
        condition_columns=tuple(raw.get("condition_columns", ())),
        conditions=tuple(conditions),
        methods=tuple(methods),
        metrics=tuple(metrics),
        cells=tuple(_cells(raw, conditions, methods, metrics)),
        settings=tuple(_settings(raw)),
        deviation=raw.get("deviation", {}),
        notes=tuple(raw["notes"]),
        search_space=raw.get("search_space", {}),
    )


def _metric(name: str, entry: dict[str, Any], in_paper: bool = True) -> Metric:
    tuples = {key: tuple(entry[key]) for key in ("conditions", "protocols") if key in entry}
    return Metric(name, **{**entry, **tuples, "in_paper": in_paper})


def _method(name: str, entry: dict[str, Any], in_paper: bool = True) -> Method:
    ours = entry.get("ours", in_paper and "ET" in name.replace("-", " ").split())
    return Method(name, entry.get("experiment"), entry.get("quoted", False), ours, in_paper)


def _cells(raw: dict[str, Any], conditions: list, methods: list, metrics: list) -> list[PaperValue]:
    known = {method.name: method for method in methods}
    cells = []
    for metric in (metric for metric in metrics if metric.in_paper):
        columns = [c.name for c in conditions if c.in_paper and metric.applies(c.name)]
        rows = raw["values"][metric.name]
        if list(rows) != [m.name for m in methods if m.in_paper]:
            raise ValueError(f"table {raw['table']}, {metric.name}: the rows are not the table's methods in order")
        for name, values in rows.items():
            if len(values) != len(columns):
                raise ValueError(f"table {raw['table']}, {metric.name}, {name}: {len(values)} of {len(columns)} values")
            for column, printed in zip(columns, values, strict=True):
                if printed is not None:
                    mean, std, bold = parse_printed(printed)
                    text = str(printed).removesuffix(" bold")
                    cells.append(PaperValue(metric.name, column, name, text, mean, std, bold, known[name].quoted))
    return cells


def _settings(raw: dict[str, Any]) -> list[Setting]:
    """Settings of the table, including the "fixed" ones that the text gives for all of its columns."""
    columns = {column: tuple(names) for column, names in raw.get("experiments", {}).items()}
    entries = list(raw.get("parameters", {}).items())
    entries += [
        (name, {**entry, "values": [entry["value"]] * len(columns), "section": "Text"})
        for name, entry in raw.get("fixed", {}).items()
    ]
    settings = []
    for parameter, entry in entries:
        if len(entry["values"]) != len(columns):
            raise ValueError(f"table {raw['table']}, {parameter}: {len(entry['values'])} of {len(columns)} values")
        for (column, experiments), value in zip(columns.items(), entry["values"], strict=True):
            settings.append(
                Setting(
                    parameter, column, experiments, value, str(entry.get("printed", value)),
                    tuple(entry.get("keys", ())), "absent" in entry, entry.get("absent"),
                    entry.get("section", ""), entry.get("why", ""), entry.get("counted", ""),
                )
            )  # fmt: skip
    return settings
