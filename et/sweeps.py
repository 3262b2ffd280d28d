"""One table, one command: python train.py --multirun sweep=table01 runs what is missing and goes on after a failure.

A sweep file (conf/sweep/) names the values of experiment, seed, fold and protocol; their product, less what
``sweep.skip`` matches, are the table's cells. What is finished, failed or interrupted is read off the run folders,
so it does not matter which process, or which Slurm job, ran a cell.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from et.errors import UserError, unwrapped
from et.results.collect import EXPERIMENTS
from et.results.identity import check_effective, config_of, resolve
from et.results.record import read_result, run_dir, run_id, write_atomically
from et.slurm import active, noted_job, queue

STATES = {
    "done": "finished",
    "queued": "in Slurm's queue",
    "failed": "failed",
    "interrupted": "started, not finished",
    "open": "not run yet",
    "invalid": "cannot be composed",
}
Seconds = Mapping[str, Mapping[str, float]]  # of training: {experiment: {run id: seconds}}
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
        return " ".join(o for o in self.overrides if not o.startswith(_NOT_IN_LABEL))

    @property
    def group(self) -> str:
        """The label without seed and fold: what the cell is averaged with."""
        return " ".join(o for o in self.label.split(" ") if not o.startswith(("seed=", "data.fold=")))


def run_cell(cfg: DictConfig) -> float | None:
    """Run one cell of a sweep: a failure is written to failure.json in its folder and the sweep goes on.

    Returns:
        The metric that the experiment monitors, None where there is none or the run failed.

    Raises:
        UserError: Hydra was started without --multirun.
    """
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        raise UserError(f"a sweep runs with --multirun: python train.py --multirun sweep={cfg.sweep.name}")
    overrides = list(HydraConfig.get().overrides.task)
    if skipped(overrides, cfg.sweep.skip):
        return None
    config = resolve(cfg)
    folder = run_dir(cfg.paths.runs, cfg.name, run_id(config))
    label = Cell(tuple(overrides), cfg.name, "open").label
    finished = read_result(folder)
    if finished is not None and not cfg.force:
        return _monitored(cfg, finished)
    _say(f"-- {label}")
    (folder / "failure.json").unlink(missing_ok=True)
    try:
        from et.training import train

        check_effective(overrides, config)
        outcome = train(cfg)
    except Exception as error:
        error = unwrapped(error)
        record_failure(folder, error, overrides)
        _say(f"   failed: {_first_line(error)}")
        return None
    _say(f"   {outcome.record['seconds']:.0f} s, {folder}")
    return _monitored(cfg, outcome.record)


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
    except OSError as problem:  # a full disk must not end the sweep that it made fail
        _say(f"   could not write {folder}/failure.json: {problem}")


def read_failure(folder: Path) -> dict[str, Any] | None:
    """The content of failure.json, None where the last attempt did not fail."""
    try:
        return json.loads((folder / "failure.json").read_text())
    except (OSError, ValueError):
        return None


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


def plan(config: DictConfig) -> list[Cell]:
    """Every cell of the sweep with its state, read from the run folders."""
    return inspect_all(jobs(config, config.hydra.overrides.task))


def inspect_all(cells: Iterable[Sequence[str]]) -> list[Cell]:
    """Cells, given as overrides, with their states."""
    states = queue() or {}
    return [inspect(overrides, states) for overrides in cells]


def inspect(overrides: Sequence[str], queued: Mapping[str, str] | None = None) -> Cell:
    """One cell and its state; ``queued`` is what :func:`et.slurm.queue` says of the jobs there are."""
    named = dict(o.split("=", 1) for o in overrides if "=" in o)
    try:
        config = config_of(overrides)
    except UserError as error:
        return Cell(tuple(overrides), named.get("experiment", "?"), "invalid", message=str(error))
    folder = run_dir(config["paths"]["runs"], config["name"], run_id(config))
    record, failure = read_result(folder), read_failure(folder)
    if record is not None:
        state, message = "done", ""
    elif queued and active(noted_job(folder), queued):
        state, message = "queued", ""
    elif failure is not None:
        state, message = "failed", f"{failure['error']}: {failure['message']}"
    else:
        state, message = ("interrupted", "") if (folder / "config.yaml").exists() else ("open", "")
    return Cell(tuple(overrides), config["name"], state, folder, message, config)


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


def recorded_seconds(experiments: Path = EXPERIMENTS) -> Seconds:
    """How long the runs took that are on record in results.jsonl of the tables' folders."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for file in sorted(experiments.glob("*/results.jsonl")):
        for line in file.read_text().splitlines():
            try:
                record = json.loads(line)
                found[record["experiment"]][record["run_id"]] = float(record["seconds"])
            except (ValueError, KeyError, TypeError):  # et.results.collect says what is wrong with such a line
                continue
    return found


def on_record(cells: Sequence[Cell], recorded: Seconds) -> int:
    """How many cells that are not finished here are among the recorded runs."""
    left = [cell for cell in cells if cell.state != "done" and cell.folder is not None]
    return sum(cell.folder.name in recorded.get(cell.experiment, {}) for cell in left)


def estimate(cells: Sequence[Cell], runs: Path, recorded: Seconds) -> tuple[float, int]:
    """(seconds, cells without an estimate) of what is left, from finished and recorded runs of the same experiment."""
    known: dict[str, list[float]] = {}
    for name in {cell.experiment for cell in cells}:
        records = [read_result(path.parent) for path in sorted((runs / name).glob("*/result.json"))]
        here = {record["run_id"]: float(record["seconds"]) for record in records if record is not None}
        known[name] = list({**recorded.get(name, {}), **here}.values())
    left = [known[cell.experiment] for cell in cells if cell.state != "done"]
    return sum(sum(seconds) / len(seconds) for seconds in left if seconds), sum(not seconds for seconds in left)


def missing_data(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """What the data modules of unfinished cells find absent: {message: experiments}. Reads no data, fetches nothing."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    asked: dict[str, list[str]] = {}
    for cell in cells:
        if cell.state == "done" or cell.config is None or cell.experiment in asked:
            continue
        asked[cell.experiment] = absent_files(cell.config["data"])
        for message in asked[cell.experiment]:
            found[message][cell.experiment] = None
    return {message: list(experiments) for message, experiments in found.items()}


def absent_files(data: Mapping[str, Any]) -> list[str]:
    """What a data configuration needs and does not find: what its constructor or its ``missing()`` says."""
    from hydra.utils import instantiate

    try:
        module = instantiate(OmegaConf.create(data))
        return list(module.missing()) if hasattr(module, "missing") else []
    except InstantiationException as error:
        return [str(unwrapped(error)).strip()]


def report(cells: Sequence[Cell], title: str, runs: Path, verbose: bool) -> None:
    """Print how a sweep stands: counts, what failed and why, what is left and how long that takes."""
    counts = {state: sum(cell.state == state for cell in cells) for state in STATES}
    _say(f"{title}: " + ", ".join(f"{n} {STATES[state]}" for state, n in counts.items() if n))
    if verbose:
        groups: dict[str, Counter[str]] = defaultdict(Counter)
        for cell in cells:
            groups[cell.group][STATES[cell.state]] += 1
        for group, states in groups.items():
            _say(f"  {group}: " + ", ".join(f"{count} {state}" for state, count in states.items()))
    reasons: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.state in ("failed", "invalid"):
            reasons[cell.message].append(cell)
    for message, failed in reasons.items():
        _say(f"  {len(failed)} x {message}")
        for cell in failed[:3]:
            _say(f"      {cell.label}" + (f"  [{cell.folder}]" if cell.folder else ""))
        if len(failed) > 3:
            _say(f"      and {len(failed) - 3} more")
    left = sum(cell.state != "done" for cell in cells)
    if left:
        recorded = recorded_seconds()
        seconds, unknown = estimate(cells, runs, recorded)
        known = f", about {_duration(seconds)} of training for {left - unknown} of them" if left > unknown else ""
        no_guess = f"; {unknown} without an estimate: no run of their experiments is finished yet" if unknown else ""
        _say(f"  left: {left} runs{known}{no_guess}")
        if count := on_record(cells, recorded):
            _say(f"  {count} of them are on record in experiments/: the tables have their results already")


class SweepCallback(Callback):
    """Hydra callback of the sweep files: plans before the first job, reports after the last."""

    def __init__(self) -> None:
        self.cells: list[Cell] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the plan; leave out what is finished; end here for a dry run or where nothing is left."""
        # Hydra turns exceptions of callbacks into warnings, which would start the sweep without its plan.
        try:
            self._start(config)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(1) from error

    def _start(self, config: DictConfig) -> None:
        title, runs = f"sweep {config.sweep.name}", Path(config.paths.runs)
        self.cells = plan(config)
        report(self.cells, title, runs, verbose=config.sweep.dry_run)
        if config.sweep.dry_run:
            absent = missing_data(self.cells)
            for message, experiments in absent.items():
                _say(f"  missing data: {message}\n      needed by {', '.join(experiments)}")
            raise SystemExit(0)
        if not config.force:
            values = needed(self.cells)
            if not values:
                raise SystemExit(int(any(cell.state not in ("done", "queued") for cell in self.cells)))
            config.hydra.sweeper.params = {key: values[key] for key in config.hydra.sweeper.params}
            given = [override.split("=", 1)[0] for override in config.hydra.overrides.task]
            config.hydra.overrides.task = [f"{key}={values[key]}" for key in given]

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print how it went; the exit status says whether every cell is finished."""
        self.cells = inspect_all(cell.overrides for cell in self.cells)
        _say("")
        report(self.cells, f"sweep {config.sweep.name}", Path(config.paths.runs), verbose=False)
        if config.sweep.detach and any(cell.state == "queued" for cell in self.cells):
            return
        if any(cell.state != "done" for cell in self.cells):
            _say("  the same command runs what is not finished")
            raise SystemExit(1)


def _monitored(cfg: DictConfig, record: Mapping[str, Any]) -> float | None:
    return record["metrics"].get(cfg.callbacks.monitor)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _say(text: str) -> None:
    print(text[: 10 * shutil.get_terminal_size().columns], flush=True)
