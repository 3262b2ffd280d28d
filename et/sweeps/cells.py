"""The cells of a sweep and their states, read from the run folders."""

from __future__ import annotations

import json
import time
import traceback
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from et.runs.config_check import check_config
from et.runs.experiments import files, names, split_name
from et.runs.fingerprint import check_same_data
from et.runs.identity import check_overrides, config_of
from et.runs.record import read_result, run_dir, run_id
from et.sweeps.slurm import active, noted_job, queue
from et.utils.errors import UserError
from et.utils.files import write_atomically
from et.utils.paths import command

STATES = {
    "done": "finished",
    "queued": "in Slurm's queue",
    "failed": "failed",
    "interrupted": "started, not finished",
    "open": "not run yet",
    "invalid": "cannot be composed",
}
_NOT_IN_LABEL = ("sweep", "paths.", "logger", "callbacks.", "force", "tags", "hydra")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep and its state."""

    overrides: tuple[str, ...]
    experiment: str
    state: str  # one of STATES
    folder: Path | None = None
    message: str = ""
    config: Mapping[str, Any] | None = None
    refused: bool = False  # its configuration is, or the data have changed since it was recorded

    @property
    def label(self) -> str:
        """Overrides that identify the cell."""
        return label_of(self.overrides)

    @property
    def group(self) -> str:
        """The label without seed and fold, shared by the cells that are averaged."""
        return " ".join(o for o in self.label.split(" ") if not o.startswith(("seed=", "data.fold=")))


def label_of(overrides: Iterable[str]) -> str:
    """Overrides that identify a cell, as text."""
    return " ".join(o for o in overrides if not o.startswith(_NOT_IN_LABEL))


def skipped(overrides: Iterable[str], rules: Iterable[Mapping[str, str]]) -> bool:
    """True if a combination is excluded: all patterns (key -> glob) of some rule match it."""
    values = dict(o.lstrip("+~").split("=", 1) for o in overrides if "=" in o)
    return any(all(fnmatchcase(values.get(k, ""), str(glob)) for k, glob in rule.items()) for rule in rules)


def combinations(params: Mapping[str, Any], overrides: Sequence[str]) -> list[list[str]]:
    """Overrides of every job that Hydra's basic sweeper creates from a sweep's params and a command line."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    given = [f"{key}={value}" for key, value in params.items()] + list(overrides)
    return BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(given), None)[0]


def chosen_experiments(arguments: Sequence[str], methods: Iterable[str], cell: str | None) -> dict[str, str]:
    """Experiments that are searched, each with its method: those of ``experiment=A,B``, or all there are of ``cell``.

    Raises:
        UserError: There is no such experiment.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides([a for a in arguments if a.startswith("experiment=")])
    if parsed:
        last = parsed[-1]
        given = [str(name) for name in (last.sweep_iterator() if last.is_sweep_override() else [last.value()])]
    else:
        given = [f"{cell}_{method}" if method else str(cell) for method in methods]
        given = [name for name in given if name in names()]
    unknown = [name for name in given if name not in names()]
    if unknown or not given:
        raise UserError(
            f"no experiment {', '.join(unknown) or cell}: give hydra.sweeper.cell or experiment=; "
            f"{command('train')} --help lists the experiments"
        )
    return {name: method_of(name, methods) for name in given}


def method_of(experiment: str, methods: Iterable[str]) -> str:
    """The one of ``methods`` that is the suffix of ``experiment``; "" for an experiment that is no variant.

    Raises:
        UserError: It is none of them.
    """
    method = split_name(experiment)[1]
    if not method and experiment in files():  # one of the user's own, whose name tells
        method = max((name for name in methods if name and experiment.endswith(f"_{name}")), key=len, default="")
    if method not in methods:
        known = ", ".join(name or "ET" for name in methods)
        raise UserError(f"hydra.sweeper.methods has no search space for {experiment}, only for {known}")
    return method


def jobs(raw: Mapping[str, Any], overrides: Sequence[str] = ()) -> list[list[str]]:
    """Overrides of the cells of a sweep file, given as plain data."""
    params = raw["hydra"]["sweeper"]["params"] or {}
    rules = raw.get("sweep", {}).get("skip", [])
    return [job for job in combinations(params, overrides) if not skipped(job, rules)]


def inspect_all(cells: Iterable[Sequence[str]]) -> list[Cell]:
    """Cells with their states, from their overrides."""
    states = queue() or {}
    return [inspect(overrides, states) for overrides in cells]


def inspect(overrides: Sequence[str], queued: Mapping[str, str] | None = None) -> Cell:
    """One cell with its state; ``queued`` is the result of :func:`et.sweeps.slurm.queue`."""
    named = dict(o.split("=", 1) for o in overrides if "=" in o)
    try:
        config = config_of(overrides)
    except UserError as error:
        return Cell(tuple(overrides), named.get("experiment", "?"), "invalid", message=str(error))
    try:
        folder = run_dir(config["paths"]["runs"], config["name"], run_id(config))
    except UserError as error:
        return Cell(tuple(overrides), config["name"], "invalid", message=str(error))
    record, failure = read_result(folder, run_id(config)), read_failure(folder)
    try:
        check_config(config, classes=False)  # each run looks into its classes, which take seconds to import
        check_overrides(overrides, config)
        if record is not None:
            check_same_data(config, record)
    except UserError as error:
        return Cell(tuple(overrides), config["name"], "failed", folder, str(error), config, refused=True)
    if record is not None:
        state, message = "done", ""
    elif queued and active(noted_job(folder), queued):
        state, message = "queued", ""
    elif failure is not None:
        state, message = "failed", f"{failure['error']}: {failure['message']}"
    else:
        state, message = ("interrupted", "") if (folder / "config.yaml").exists() else ("open", "")
    return Cell(tuple(overrides), config["name"], state, folder, message, config)


def record_failure(folder: Path, error: Exception, overrides: Iterable[str]) -> None:
    """Write failure.json: the error, the time, and the command that tries again."""
    # Errors that are meant for people explain themselves; the others need their traceback.
    trace = "" if isinstance(error, UserError) else "".join(traceback.format_exception(error))
    failure = {
        "error": type(error).__name__,
        "message": str(error).strip() or type(error).__name__,
        "traceback": trace,
        "overrides": list(overrides),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "failure.json", json.dumps(failure, indent=2) + "\n")
    except (OSError, UserError) as problem:  # a full disk must not end the sweep that it made fail
        print(f"   could not write {folder}/failure.json: {problem}", flush=True)


def read_failure(folder: Path) -> dict[str, Any] | None:
    """Content of failure.json; None if the last attempt did not fail."""
    try:
        failure = json.loads((folder / "failure.json").read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return failure if isinstance(failure, dict) and {"error", "message"} <= failure.keys() else None


def needed(cells: Sequence[Cell]) -> dict[str, str]:
    """Values of the cells to be run, by key.

    Experiments with an invalid cell are left out, since one such job would keep Hydra from starting any.
    """
    broken = {cell.experiment for cell in cells if cell.state == "invalid"}
    values: dict[str, dict[str, None]] = defaultdict(dict)
    for cell in cells:
        if cell.state not in ("done", "queued") and cell.experiment not in broken:
            for key, value in (override.split("=", 1) for override in cell.overrides):
                values[key][value] = None
    return {key: ",".join(chosen) for key, chosen in values.items()}
