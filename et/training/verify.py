"""Repeat a random few of the recorded runs: python -m et.training.verify [1 2 ...] (make verify-records).

Every family of models gives some cheap records. A repetition must be equal to the last digit on the same kind of
machine with the same libraries, and elsewhere within the tolerance of its task, losses and thresholds left aside.
Metrics that are not, and what differs in code, libraries, machine or data, are named. Exit status 0: all that was
repeated agrees; 1: something differs or nothing could be repeated.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import OmegaConf

from et.results import paper
from et.results.collect import STALE, Run, collect
from et.runs.identity import config_of
from et.runs.loading import task_class
from et.sweeps.report import absent_files
from et.training.reproduction import Comparison, compare_repetition
from et.utils.errors import UserError
from et.utils.paths import EXPERIMENTS

# Ends of the names of metrics that are compared on the same machine only.
LOCAL = ("/loss", "/threshold")


@dataclass(frozen=True)
class Verdict:
    """What became of one record: ``state`` is "equal", "agrees", "DIFFERS" or "skipped"; ``lines`` say why."""

    run: Run
    state: str
    lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        key = self.run.key
        fold = "" if key.fold is None else f" fold {key.fold}"
        name = f"{self.state}: {key.experiment} {key.protocol} seed {key.seed}{fold} ({self.run.source})"
        return "\n".join([name, *(f"  {line}" for line in self.lines)])


def family_of(record: Mapping[str, Any]) -> str:
    """The record's task; runs without parameters, which nothing trains by gradients, are a family of their own."""
    return record["task"] if record["num_params"] else f"{record['task']}, no parameters"


def sample(runs: Iterable[Run], per_family: int, longest: float, seed: int) -> list[Run]:
    """Records to repeat, the families taking turns.

    Args:
        runs: Recorded runs. Those of another configuration, or that took longer than ``longest``, are left out, and
            those that trained nothing: the time of their scoring is not recorded.
        per_family: Number of records of each family.
        longest: Seconds of training.
        seed: Of the choice.
    """
    families: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.record["run_id"]):
        cheap = run.record["epochs"] > 0 and run.record["seconds"] <= longest
        if cheap and not run.label.startswith(STALE):
            families[family_of(run.record)].append(run)
    chosen = [
        random.Random(f"{seed} {name}").sample(found, min(per_family, len(found)))
        for name, found in sorted(families.items())
    ]
    return [found[turn] for turn in range(per_family) for found in chosen if turn < len(found)]


def judge(run: Run, comparison: Comparison, tolerance: float) -> Verdict:
    """Whether a repetition agrees with its record, and what differs.

    Losses and thresholds are compared on the same machine only: one confident wrong answer in a small test set moves
    a mean cross-entropy by any amount, and a chosen threshold moves from one step of its grid to another.

    Args:
        run: Recorded run.
        comparison: Record and repetition.
        tolerance: Relative and absolute difference of a metric that is allowed on another machine or with other
            libraries: a limit that was set, not measured.
    """
    tolerance = 0.0 if comparison.same_machine else tolerance
    beyond = comparison.beyond(tolerance)
    if not comparison.same_machine:
        beyond = {name: pair for name, pair in beyond.items() if not name.endswith(LOCAL)}
    lines = [f"{name}: recorded {pair[0]}, repeated {pair[1]}" for name, pair in beyond.items()]
    if beyond:
        lines.append(f"tolerance: {tolerance:g}" + (", same machine and libraries" if comparison.same_machine else ""))
    if not comparison.equal:
        lines += [f"differs: {name}: {one} -> {two}" for name, (one, two) in comparison.circumstances.items()]
    return Verdict(run, "DIFFERS" if beyond else "equal" if comparison.equal else "agrees", tuple(lines))


def verify(runs: Sequence[Run], folder: Path, data: Path | None, budget: float) -> Iterator[Verdict]:
    """Repeat each of ``runs`` in ``folder``.

    Args:
        runs: Recorded runs.
        folder: Where the repetitions' run folders go.
        data: The data root. If None, the configuration's.
        budget: Seconds for all; a run that took longer than what is left of it is skipped.
    """
    end = time.monotonic() + budget
    for run in runs:
        if run.record["seconds"] > end - time.monotonic():
            yield Verdict(run, "skipped", (f"it took {run.record['seconds']:.0f} s, more than the budget has left",))
            continue
        place = [] if data is None else [f"paths.data={data}"]
        cfg = OmegaConf.create(config_of([*run.overrides, *place], run.source))
        cfg.paths.runs, cfg.callbacks.progress = str(folder), False
        absent = absent_files(OmegaConf.to_container(cfg.data, resolve=True))
        if absent:
            yield Verdict(run, "skipped", (f"data absent: {absent[0]}",))
            continue
        try:
            yield judge(run, compare_repetition(run.record, cfg), task_class(cfg).repeat_tolerance)
        except UserError as error:
            yield Verdict(run, "DIFFERS", (f"it no longer runs: {error}",))


def main(arguments: Sequence[str] | None = None) -> int:
    """Repeat a random few cheap records of every family and say which do not come out the same."""
    parser = argparse.ArgumentParser(prog="python -m et.training.verify", description=main.__doc__)
    parser.add_argument("tables", nargs="*", type=int, help="table numbers; default: all")
    parser.add_argument("--per-family", type=int, default=2, help="records of each family (default 2)")
    parser.add_argument("--longest", type=float, default=60, help="seconds a record may have taken (default 60)")
    parser.add_argument("--budget", type=float, default=600, help="seconds for all repetitions (default 600)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of records (default 0)")
    parser.add_argument("--data", type=Path, default=os.environ.get("ET_DATA_DIR"), help="the data root")
    parser.add_argument("--experiments", type=Path, default=EXPERIMENTS, help="where tableNN/ folders are")
    options = parser.parse_args(arguments)
    numbers = options.tables or paper.NUMBERS
    found = collect(lines=[options.experiments / f"table{number:02d}" / "results.jsonl" for number in numbers])
    chosen = sample(found.runs.values(), options.per_family, options.longest, options.seed)
    states: dict[str, int] = defaultdict(int)
    with TemporaryDirectory(prefix="verify-") as folder:
        for verdict in verify(chosen, Path(folder), options.data, options.budget):
            states[verdict.state] += 1
            print(verdict, flush=True)
    print(f"seed {options.seed}: " + (", ".join(f"{n} {state}" for state, n in sorted(states.items())) or "no records"))
    repeated = states["equal"] + states["agrees"]
    if not repeated and not states["DIFFERS"]:
        print("error: nothing was repeated", file=sys.stderr)
    return 0 if repeated and not states["DIFFERS"] else 1


if __name__ == "__main__":
    sys.exit(main())
