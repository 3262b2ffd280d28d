"""Progress report of a sweep: counts, failures, missing data, and remaining time."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from et.runs.experiments import split_name
from et.runs.record import read_result
from et.sweeps.cells import STATES, Cell
from et.utils.errors import unwrapped
from et.utils.paths import EXPERIMENTS

SIZES = Path(__file__).parents[1] / "results" / "paper" / "table08.yaml"  # of the data sets of table 2
SPEED_SETTINGS = ("trainer.precision=", "data.batch_size=", "model.")  # overrides that change the time of an epoch


class FinishedRun(NamedTuple):
    """A finished run of which the training time is known.

    Attributes:
        run_id: Its id.
        epoch_seconds: Seconds of training per epoch. None if it has no epochs, or they had a limited number of batches.
        device: Where it ran.
        speed_settings: Its settings that change the time of an epoch, :data:`SPEED_SETTINGS`.
        data: Name of its data.
        nodes: Number of nodes of the data; None if the record has none.
    """

    run_id: str
    epoch_seconds: float | None
    device: str
    speed_settings: frozenset[str] = frozenset()
    data: str = ""
    nodes: int | None = None


FinishedRuns = Mapping[tuple[str, str], Sequence[FinishedRun]]  # by experiment and protocol


def report(cells: Sequence[Cell], title: str, runs: Path, verbose: bool) -> None:
    """Print the progress of a sweep: counts, failures, remaining cells and their estimated time."""
    counts = {state: sum(cell.state == state for cell in cells) for state in STATES}
    say(f"{title}: " + ", ".join(f"{n} {STATES[state]}" for state, n in counts.items() if n))
    recorded = recorded_runs()
    left = [cell for cell in cells if cell.state != "done"]
    known = on_record(left, recorded)
    estimates = _estimates(left, runs, recorded)
    rest = [(cell, estimate) for cell, estimate in zip(left, estimates, strict=True) if cell not in known]
    if verbose:
        groups: dict[str, Counter[str]] = defaultdict(Counter)
        for cell in cells:
            groups[cell.group]["on record" if cell.state == "open" and cell in known else STATES[cell.state]] += 1
        for group, states in groups.items():
            (exact, some), (rough, others), _ = _totals([estimate for cell, estimate in rest if cell.group == group])
            time = f", up to {duration(exact)}" * bool(some) + f", roughly {duration(rough)}" * bool(others)
            say(f"  {group}: " + ", ".join(f"{count} {state}" for state, count in states.items()) + time)
    reasons: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.state in ("failed", "invalid"):
            reasons[cell.message].append(cell)
    for message, failed in reasons.items():
        say(f"  {len(failed)} x {message}")
        for cell in failed[:3]:
            say(f"      {cell.label}" + (f"  [{cell.folder}]" if cell.folder else ""))
        if len(failed) > 3:
            say(f"      and {len(failed) - 3} more")
    if left:
        say(f"  left: {len(left)} runs{_time_of(estimates)}")
        if known:
            others = f"; the other {len(rest)}{_time_of([estimate for _, estimate in rest])}" if rest else ""
            say(f"  {len(known)} of them are on record in experiments/: the tables have their results already{others}")


class Estimate(NamedTuple):
    """Estimated seconds of training of a cell; None if unknown. ``rough`` if they are those of other data."""

    seconds: float | None
    rough: bool


def _estimates(cells: Sequence[Cell], runs: Path, recorded: FinishedRuns) -> list[Estimate]:
    """The estimate of each cell, by runs of its experiment or else by its method on other data."""
    own = seconds_of(cells, runs, recorded)
    without = [cell for cell, seconds in zip(cells, own, strict=True) if seconds is None]
    other = iter(seconds_by_size(without, recorded) if without else ())
    return [Estimate(next(other), True) if seconds is None else Estimate(seconds, False) for seconds in own]


def _totals(estimates: Sequence[Estimate]) -> tuple[tuple[float, int], tuple[float, int], int]:
    """(seconds, number of cells) by their own experiments and by other data, and the number without an estimate."""
    parts = [[e.seconds for e in estimates if e.seconds is not None and e.rough is rough] for rough in (False, True)]
    exact, rough = ((sum(part), len(part)) for part in parts)
    return exact, rough, len(estimates) - exact[1] - rough[1]


def _time_of(estimates: Sequence[Estimate]) -> str:
    (exact, known), (rough, by_size), unknown = _totals(estimates)
    text = f", up to {duration(exact)} of training (scoring not counted) for {known} of them" if known else ""
    if by_size:
        text += f", roughly {duration(rough)} for {by_size} by the time per node of their method on other data"
    if unknown:
        text += f"; {unknown} without an estimate: no run of their experiments is finished yet"
    return text


def recorded_runs(experiments: Path = EXPERIMENTS, only: str = "") -> FinishedRuns:
    """Training times of the runs recorded in results.jsonl of the tables' folders; ``only``: of one experiment."""
    found: dict[tuple[str, str], list[FinishedRun]] = defaultdict(list)
    for file in sorted(experiments.glob("*/results.jsonl")):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if only and f'"experiment": "{only}"' not in line:
                continue
            with suppress(ValueError, KeyError, TypeError):  # et.results.collect says what is wrong
                record = json.loads(line)
                found[record["experiment"], record["protocol"]].append(_finished(record, record.get("overrides", ())))
    return found


def _finished(record: Mapping[str, Any], overrides: Sequence[str]) -> FinishedRun:
    epochs, seconds = record["epochs"], float(record["seconds"])
    limited = any("limit_train_batches" in override for override in overrides)
    epoch_seconds = None if limited or not epochs else seconds / epochs
    data = record.get("dataset", {})
    device, name, nodes = str(record.get("device", "unknown")), str(data.get("name", "")), data.get("num_nodes")
    return FinishedRun(record["run_id"], epoch_seconds, device, _speed_settings(overrides), name, nodes)


def _speed_settings(overrides: Sequence[str]) -> frozenset[str]:
    return frozenset(o for o in (override.lstrip("+~") for override in overrides) if o.startswith(SPEED_SETTINGS))


def on_record(cells: Sequence[Cell], recorded: FinishedRuns) -> list[Cell]:
    """The cells that are among the recorded runs."""
    known = {run.run_id for runs in recorded.values() for run in runs}
    return [cell for cell in cells if cell.folder is not None and cell.folder.name in known]


def seconds_of(cells: Sequence[Cell], runs: Path, recorded: FinishedRuns) -> list[float | None]:
    """Seconds of training of each cell, if it does not stop early; None without a finished run of its experiment.

    An epoch of a cell takes as long as the mean one of its experiment under its protocol, here or on record. Runs with
    another precision, batch size or model count only if there is no run with those of the cell.
    """
    known: dict[tuple[str, str], list[FinishedRun]] = defaultdict(list)
    for name in {cell.experiment for cell in cells}:
        for path in sorted((runs / name).glob("*/result.json")):
            record, overrides = read_result(path.parent), path.with_name("overrides.yaml")
            if record is not None:
                given = overrides.read_text(encoding="utf-8").splitlines() if overrides.exists() else []
                known[name, record["protocol"]].append(_finished(record, [line.removeprefix("- ") for line in given]))
    found: list[float | None] = []
    for cell in cells:
        config = cell.config or {}
        key = (cell.experiment, config.get("protocol", ""))
        timed = [run for run in [*recorded.get(key, ()), *known[key]] if run.epoch_seconds is not None]
        alike = [run for run in timed if run.speed_settings == _speed_settings(cell.overrides)]
        epochs = list({run.run_id: run.epoch_seconds for run in alike or timed}.values())
        found.append(sum(epochs) / len(epochs) * config["trainer"]["max_epochs"] if epochs else None)
    return found


def seconds_by_size(cells: Sequence[Cell], recorded: FinishedRuns) -> list[float | None]:
    """Seconds of training of each cell by recorded runs of its method on other data; None without one.

    An epoch takes as long for each node as the mean recorded one. This is rough: graphs differ in size and in edges.
    """
    sizes = {run.data.upper(): run.nodes for runs in recorded.values() for run in runs if run.nodes is not None}
    published: Any = OmegaConf.to_container(OmegaConf.load(SIZES))
    graphs, nodes_each = (published["values"][column]["counted"] for column in ("graphs", "avg_nodes"))
    for (name,), count, mean in zip(published["conditions"].values(), graphs, nodes_each, strict=True):
        sizes[name] = round(count * float(mean))
    per_node: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for (experiment, protocol), runs in recorded.items():
        for run in runs:
            nodes = sizes.get(run.data.upper())
            if run.epoch_seconds is not None and nodes:
                per_node[_kind(experiment), split_name(experiment)[1], protocol].append(run.epoch_seconds / nodes)
    found: list[float | None] = []
    for cell in cells:
        config = cell.config or {}
        nodes = sizes.get(str(config.get("data", {}).get("name", "")).upper())
        rates = per_node.get((_kind(cell.experiment), split_name(cell.experiment)[1], config.get("protocol", "")))
        known = rates and nodes
        found.append(sum(rates) / len(rates) * nodes * config["trainer"]["max_epochs"] if known else None)
    return found


def _kind(experiment: str) -> str:
    """The first word of an experiment, which says what kind of data it has: tu, gnnbench, zinc."""
    return experiment.split("_")[0]


def missing_data(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """Missing data of unfinished cells: {message: experiments}. Reads and downloads no data."""
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
    """Messages about missing files of a data configuration, from its constructor or its ``missing()``."""
    from hydra.utils import instantiate

    try:
        module = instantiate(OmegaConf.create(data))
        return list(module.missing()) if hasattr(module, "missing") else []
    except InstantiationException as error:
        return [str(unwrapped(error)).strip()]


def say(text: str) -> None:
    print(text[: 10 * shutil.get_terminal_size().columns], flush=True)


def duration(seconds: float) -> str:
    """ "45 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
