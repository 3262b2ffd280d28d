"""Data behind the cells of the report page: runs and their configurations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from et.results.collect import STALE, Run
from et.results.coverage import line_differs, on_other_data
from et.results.paper import Table
from et.results.results_table import Entry, measured_text
from et.results.run_files import as_data_uri, picture_files, read_curves, read_descent
from et.runs.identity import config_of
from et.runs.record import hashed_config
from et.utils.errors import UserError
from et.utils.paths import command

_OF_THE_RUN = ("seed", "fold")  # differ within a cell; shown with each run


@dataclass
class Evidence:
    """Cells, runs and configurations by the names that the page uses; each run and configuration is stored once.

    Attributes:
        figure_bytes: Number of bytes of pictures that may still be added to the page.
        descents: Recorded descents, in the order of their runs.
    """

    figure_bytes: int
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    configurations: dict[str, str] = field(default_factory=dict)
    descents: list[dict[str, Any]] = field(default_factory=list)

    def add_cell(self, table: Table, entry: Entry) -> str:
        """Add the runs of an entry of a protocol's column; returns the cell's name."""
        name = f"c{len(self.cells)}"
        line, metric, measured, paper = entry.line, entry.metric, entry.measured, entry.paper
        experiment = line.method.experiment_for(line.condition.name)
        self.cells[name] = {
            "table": table.number,
            "method": line.method.name,
            "condition": " · ".join(line.condition.labels),
            "metric": f"{metric.label}{f' ({metric.unit})' if metric.unit else ''}",
            "unit": metric.unit,
            "key": metric.key,
            "scale": metric.scale,
            "digits": metric.digits,
            "direction": metric.direction,
            "protocol": entry.protocol,
            "variant": line.variant,
            "otherData": on_other_data(line),
            "beside": not line_differs(line) and paper is not None,
            "label": line.label,
            "text": measured_text(entry).text,
            "mean": measured and measured.mean,
            "over": measured.over if measured else "",
            "paper": paper and paper.printed,
            "paperMean": paper and paper.mean,
            "paperStd": paper and paper.std,
            "command": f"{command('train')} --multirun sweep=table{table.number:02d} experiment={experiment}",
            "runs": [self.add_run(run) for run in measured.runs] if measured else [],
        }
        return name

    def add_other(self, experiment: str, protocol: str, runs: Iterable[Run]) -> str:
        """Add runs that no table shows; returns the cell's name."""
        name = f"c{len(self.cells)}"
        ours = [self.add_run(run) for run in runs]
        again = f"{command('train')} experiment={experiment} protocol={protocol}"
        self.cells[name] = {
            "table": None, "method": experiment, "condition": "", "protocol": protocol, "command": again,
            "runs": ours,
        }  # fmt: skip
        return name

    def add_run(self, run: Run) -> str:
        """Add a run with its configuration and the pictures of its folder; returns its run id."""
        record, identity = run.record, run.record["run_id"]
        if identity in self.runs:
            return identity
        curves = record.get("curves") if run.folder is None else read_curves(run.folder)
        self.runs[identity] = {
            "experiment": run.key.experiment, "protocol": run.key.protocol, "fidelity": run.key.fidelity,
            "seed": run.key.seed, "fold": run.key.fold, "variant": run.variant, "label": run.label,
            "source": run.source, "overrides": list(run.overrides),
            **{key: record.get(key) for key in ("dataset", "metrics", "best_epoch", "num_params", "epochs", "seconds",
                                                "peak_memory_mb", "device", "git_commit", "versions")},
            "curves": curves or None,
            "configuration": self._configuration(run),
            **self._figures(run),
        }  # fmt: skip
        descent = None if run.folder is None else read_descent(run.folder)
        if descent is not None:
            self.descents.append({"run": identity, **descent})
        return identity

    def _configuration(self, run: Run) -> str | None:
        """Name of the run's configuration; None if the current files no longer compose it."""
        if run.label == STALE:
            return None
        try:
            config = hashed_config(config_of(run.overrides, run.source))
        except UserError:
            return None
        text = yaml.safe_dump(_of_all_runs(config), sort_keys=False, width=100)
        name = hashlib.sha256(text.encode()).hexdigest()[:8]
        self.configurations[name] = text
        return name

    def _figures(self, run: Run) -> dict[str, Any]:
        """The run's pictures, and the number that were omitted to keep the page small."""
        paths = [] if run.folder is None else picture_files(run.folder)
        figures: list[dict[str, str]] = []
        for path in paths:
            if self.figure_bytes <= 0:
                break
            try:
                uri = as_data_uri(path)
            except OSError:  # a damaged picture is no reason to have no page
                continue
            self.figure_bytes -= len(uri)
            figures.append({"name": path.stem.replace("_", " "), "source": uri})
        return {"figures": figures, "figuresLeftOut": len(paths) - len(figures)}


def _of_all_runs(config: Any) -> Any:
    """Configuration without the keys that differ between the runs of a cell, so that these share one text."""
    if isinstance(config, Mapping):
        return {k: "(the run's)" if k in _OF_THE_RUN else _of_all_runs(v) for k, v in config.items()}
    return [_of_all_runs(value) for value in config] if isinstance(config, list) else config
