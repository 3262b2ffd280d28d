"""Progress report of a sweep: counts, failures, missing data, and remaining time."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from et.runs.record import read_result
from et.sweeps.cells import STATES, Cell
from et.utils.errors import unwrapped
from et.utils.paths import EXPERIMENTS

Seconds = Mapping[str, Mapping[str, float]]  # of training: {experiment: {run id: seconds}}


def report(cells: Sequence[Cell], title: str, runs: Path, verbose: bool) -> None:
    """Print the progress of a sweep: counts, failures, remaining cells and their estimated time."""
    counts = {state: sum(cell.state == state for cell in cells) for state in STATES}
    say(f"{title}: " + ", ".join(f"{n} {STATES[state]}" for state, n in counts.items() if n))
    if verbose:
        groups: dict[str, Counter[str]] = defaultdict(Counter)
        for cell in cells:
            groups[cell.group][STATES[cell.state]] += 1
        for group, states in groups.items():
            say(f"  {group}: " + ", ".join(f"{count} {state}" for state, count in states.items()))
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
    left = sum(cell.state != "done" for cell in cells)
    if left:
        recorded = recorded_seconds()
        seconds, unknown = estimate(cells, runs, recorded)
        known = f", about {duration(seconds)} of training for {left - unknown} of them" if left > unknown else ""
        no_guess = f"; {unknown} without an estimate: no run of their experiments is finished yet" if unknown else ""
        say(f"  left: {left} runs{known}{no_guess}")
        if count := on_record(cells, recorded):
            say(f"  {count} of them are on record in experiments/: the tables have their results already")


def recorded_seconds(experiments: Path = EXPERIMENTS) -> Seconds:
    """Training times of the runs recorded in results.jsonl of the tables' folders."""
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
    """Number of cells that are unfinished here but among the recorded runs."""
    left = [cell for cell in cells if cell.state != "done" and cell.folder is not None]
    return sum(cell.folder.name in recorded.get(cell.experiment, {}) for cell in left)


def estimate(cells: Sequence[Cell], runs: Path, recorded: Seconds) -> tuple[float, int]:
    """(seconds, number of cells without an estimate) of the remaining cells, from runs of the same experiment."""
    known: dict[str, list[float]] = {}
    for name in {cell.experiment for cell in cells}:
        records = [read_result(path.parent) for path in sorted((runs / name).glob("*/result.json"))]
        here = {record["run_id"]: float(record["seconds"]) for record in records if record is not None}
        known[name] = list({**recorded.get(name, {}), **here}.values())
    left = [known[cell.experiment] for cell in cells if cell.state != "done"]
    return sum(sum(seconds) / len(seconds) for seconds in left if seconds), sum(not seconds for seconds in left)


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
