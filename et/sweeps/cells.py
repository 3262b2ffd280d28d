"""The cells of a sweep: which there are, and what their run folders say of them."""

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
from et.runs.fingerprint import check_same_data
from et.runs.identity import check_overrides, config_of
from et.runs.record import read_result, run_dir, run_id
from et.sweeps.slurm import active, noted_job, queue
from et.utils.errors import UserError
from et.utils.files import write_atomically

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
    """One run of a sweep and what its folder says of it."""

    overrides: tuple[str, ...]
    experiment: str
    state: str  # one of STATES
    folder: Path | None = None
    message: str = ""
    config: Mapping[str, Any] | None = None

    @property
    def label(self) -> str:
        """The overrides that make this cell what it is."""
        return label_of(self.overrides)

    @property
    def group(self) -> str:
        """The label without seed and fold: what the cell is averaged with."""
        return " ".join(o for o in self.label.split(" ") if not o.startswith(("seed=", "data.fold=")))


def label_of(overrides: Iterable[str]) -> str:
    """The overrides that make a cell what it is."""
    return " ".join(o for o in overrides if not o.startswith(_NOT_IN_LABEL))


def skipped(overrides: Iterable[str], rules: Iterable[Mapping[str, str]]) -> bool:
    """Whether a combination is no cell: some rule's patterns (key -> glob) all match it."""
    values = dict(o.lstrip("+~").split("=", 1) for o in overrides if "=" in o)
    return any(all(fnmatchcase(values.get(k, ""), str(glob)) for k, glob in rule.items()) for rule in rules)


def combinations(params: Mapping[str, Any], overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every job that Hydra's basic sweeper makes of a sweep's params and of a command line."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    given = [f"{key}={value}" for key, value in params.items()] + list(overrides)
    return BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(given), None)[0]


def jobs(raw: Mapping[str, Any], overrides: Sequence[str] = ()) -> list[list[str]]:
    """The cells of a sweep file, given as its plain content, as overrides."""
    params = raw["hydra"]["sweeper"]["params"] or {}
    rules = raw.get("sweep", {}).get("skip", [])
    return [job for job in combinations(params, overrides) if not skipped(job, rules)]


def inspect_all(cells: Iterable[Sequence[str]]) -> list[Cell]:
    """Cells, given as overrides, with their states."""
    states = queue() or {}
    return [inspect(overrides, states) for overrides in cells]


def inspect(overrides: Sequence[str], queued: Mapping[str, str] | None = None) -> Cell:
    """One cell and its state; ``queued`` is what :func:`et.sweeps.slurm.queue` says of the jobs there are."""
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
        return Cell(tuple(overrides), config["name"], "failed", folder, str(error), config)
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
    """Write failure.json: what went wrong, when, and the command that tries again."""
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
    """The content of failure.json, None where the last attempt did not fail."""
    try:
        failure = json.loads((folder / "failure.json").read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return failure if isinstance(failure, dict) and {"error", "message"} <= failure.keys() else None


def needed(cells: Sequence[Cell]) -> dict[str, str]:
    """The values that cells to be run have, by key: what is left of a sweep once its finished corners are cut off.

    Experiments with an invalid cell are left out, since one such job would keep Hydra from starting any.
    """
    broken = {cell.experiment for cell in cells if cell.state == "invalid"}
    values: dict[str, dict[str, None]] = defaultdict(dict)
    for cell in cells:
        if cell.state not in ("done", "queued") and cell.experiment not in broken:
            for key, value in (override.split("=", 1) for override in cell.overrides):
                values[key][value] = None
    return {key: ",".join(chosen) for key, chosen in values.items()}
