"""How many cells of a table are measured: beside a number of the paper, on its data, and on other data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from et.results.measured import PROTOCOLS, Line, measure
from et.results.paper import Table


@dataclass(frozen=True)
class Coverage:
    """Counts of cells; a cell is a metric of a method on a data set under one protocol.

    Attributes:
        of_paper: Numbers of the paper that have an experiment here.
        beside: Those of them that are measured, under either protocol, on the paper's data with the experiment's own
            configuration.
        papers_data: Cells measured on the paper's data, with or without a number of the paper beside them.
        other_data: Cells measured on other data.
    """

    of_paper: int = 0
    beside: int = 0
    papers_data: int = 0
    other_data: int = 0

    def __add__(self, other: Coverage) -> Coverage:
        return Coverage(
            self.of_paper + other.of_paper,
            self.beside + other.beside,
            self.papers_data + other.papers_data,
            self.other_data + other.other_data,
        )

    def sentence(self) -> str:
        """The counts in words."""
        return (
            f"{self.beside} of {self.of_paper} numbers of the paper are measured here, with its data and settings. "
            f"Measured cells: {self.papers_data} on the paper's data, {self.other_data} on other data."
        )


def line_differs(line: Line) -> bool:
    """True if a line may not stand beside the paper's number: other data, or another configuration."""
    return bool(line.label) or (bool(line.variant) and line.condition.in_paper)


def on_other_data(line: Line) -> bool:
    """True if the line's data are not those that the paper has."""
    return bool(line.variant) or not line.condition.in_paper


def coverage_of(table: Table, lines: Sequence[Line]) -> Coverage:
    """The counts of one table."""
    metrics = [metric for metric in table.metrics if metric.measured]
    printed = {
        (cell.metric, cell.condition, cell.method)
        for cell in table.cells
        if any(m.name == cell.metric for m in metrics) and _runs_here(table, cell.condition, cell.method)
    }
    beside, papers_data, other_data = set(), 0, 0
    for line in lines:
        for metric in metrics:
            found = sum(measure(table, metric, line, protocol) is not None for protocol in PROTOCOLS)
            if on_other_data(line):
                other_data += found
            else:
                papers_data += found
            if found and not line_differs(line):
                beside.add((metric.name, line.condition.name, line.method.name))
    return Coverage(len(printed), len(beside & printed), papers_data, other_data)


def total(coverages: Iterable[Coverage]) -> Coverage:
    """The sum over tables."""
    return sum(coverages, Coverage())


def _runs_here(table: Table, condition: str, method: str) -> bool:
    found = next(m for m in table.methods if m.name == method)
    return found.experiment_for(condition) is not None
