"""Results from run folders and committed json lines, checked against the configurations they claim.

``python -m et.results.collect 1 2 ...`` appends the finished runs of these tables to experiments/tableNN/results.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from et.results import paper
from et.results.run_files import read_curves
from et.runs.fingerprint import of_user_data
from et.runs.foreign import read_config
from et.runs.identity import Key, claimed_key, config_of, differences, flatten, key_of, reproduces
from et.runs.record import load_record, malformed, run_id, verified, with_checksum
from et.utils.errors import UserError, exit_on_user_error
from et.utils.files import write_atomically
from et.utils.paths import EXPERIMENTS, ROOT

STALE = "recorded with another configuration"


@dataclass(frozen=True)
class Run:
    """A finished run whose record matches its configuration.

    Attributes:
        record: Content of result.json.
        key: Experiment, seed, fold, protocol and fidelity.
        overrides: Arguments of train.py that give the run's configuration.
        label: Differences from the experiment's current configuration; empty if there are none.
        source: File (and line) it was read from.
        folder: The run's folder, or None if it was read from a json line.
    """

    record: Mapping[str, Any]
    key: Key
    overrides: tuple[str, ...]
    label: str
    source: str
    folder: Path | None = None

    @property
    def variant(self) -> str:
        """Description of the data's difference from the published data set; empty if there is none."""
        variant = str(self.record["dataset"].get("variant", "unknown"))
        return "" if variant.startswith("exact") else variant

    @property
    def of_user_data(self) -> bool:
        """True if the data are the user's own, which no table of the paper shows."""
        return of_user_data(self.record)

    @property
    def split(self) -> tuple[Any, ...]:
        """Key that runs must share for a paired comparison: seed, fold and the hash of the split."""
        split = self.record["dataset"].get("split_sha256")
        return (self.key.seed, self.key.fold, None if split is None else json.dumps(split, sort_keys=True))


@dataclass
class Collection:
    """Runs by run id, and reports on everything that was left out or is inconsistent."""

    runs: dict[str, Run] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    # Runs that stand in a folder and, equal, in a json line: what recording a run makes of it.
    recorded: set[str] = field(default_factory=set)
    _experiment: dict[str, str] = field(default_factory=dict)  # of problems that concern one

    def add(self, run: Run) -> None:
        """Add a run. The same run from a second source is reported unless its metrics agree with a recorded line."""
        identity = run.record["run_id"]
        known = self.runs.setdefault(identity, run)
        if known is run:
            return
        same = known.record["metrics"] == run.record["metrics"]
        if same and known.folder is not None and run.folder is None:
            self.recorded.add(identity)
            return
        agree = "with the same metrics" if same else f"with other metrics; {known.source} is kept"
        self.problems.append(f"duplicate: run {identity} of {run.key.experiment} is also in {run.source}, {agree}")
        self._experiment[self.problems[-1]] = run.key.experiment

    def of(self, experiments: Iterable[str]) -> Collection:
        """Runs of some experiments, with the reports about these and those that belong to no experiment."""
        wanted = set(experiments)
        runs = {identity: run for identity, run in self.runs.items() if run.key.experiment in wanted}
        problems = [p for p in self.problems if self._experiment.get(p) in {None, *wanted}]
        return Collection(runs, problems, self.recorded & runs.keys(), self._experiment)

    def reports(self) -> list[str]:
        """The problems, and in one line the number of runs that were found in both forms."""
        count = len(self.recorded)
        both = f"duplicate: {count} runs are in run folders and recorded lines, equal; counted once"
        return [*self.problems, both] if count else self.problems


def collect(
    roots: Iterable[str | Path] = (), lines: Iterable[str | Path] = (), experiments: Iterable[str] | None = None
) -> Collection:
    """Read every run under ``roots`` (result.json in run folders) and in ``lines`` (results.jsonl files).

    Args:
        roots: Folders that are searched for result.json at any depth.
        lines: Files of json lines; a missing file is treated as empty.
        experiments: Names of the experiments to keep. If None, all.
    """
    found = Collection()
    wanted = None if experiments is None else set(experiments)
    for root in roots:
        for path in results_below(Path(root)):
            _take(found, wanted, lambda path=path: from_folder(path.parent))
    for file in lines:
        for number, line in enumerate(lines_of_file(Path(file)), 1):
            if line.strip():
                source = f"{relative(Path(file))}:{number}"
                _take(found, wanted, lambda line=line, source=source: from_line(line, source, wanted))
    return found


def lines_of_file(file: Path) -> list[str]:
    """Lines of a results.jsonl; empty if there is none. Bytes that are not UTF-8 become lone surrogates."""
    return file.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if file.exists() else []


def results_below(root: Path) -> list[Path]:
    """Every result.json below ``root``, sorted, in linked folders too; a folder with several names is read once."""
    seen, found = set(), []
    for folder, below, files in os.walk(root, followlinks=True):
        if os.path.realpath(folder) in seen:
            below.clear()
            continue
        seen.add(os.path.realpath(folder))
        if "result.json" in files:
            found.append(Path(folder, "result.json"))
        below.sort()
    return sorted(found)


def _take(found: Collection, wanted: set[str] | None, read: Any) -> None:
    try:
        run = read()
    except UserError as error:
        found.problems.append(str(error))
        return
    if run is not None and (wanted is None or run.key.experiment in wanted):
        found.add(run)


def from_folder(folder: Path) -> Run:
    """Read the run of a folder with result.json and config.yaml.

    Raises:
        UserError: The result is corrupt or truncated, or does not belong to the configuration beside it, or that is not
            trusted (:mod:`et.runs.foreign`).
    """
    where = relative(folder)
    try:
        record = load_record(folder / "result.json")
    except UserError as error:
        raise UserError(f"corrupt: {str(error).replace(str(folder), where)}; treated as missing") from error
    try:
        config: Any = OmegaConf.to_container(read_config(folder / "config.yaml"))
        key, identity = key_of(config), run_id(config)
        claimed = claimed_key(record, key.fold, f"{where}/result.json")
    except UserError as error:
        raise UserError(f"foreign: {str(error).replace(str(folder), where)}; left out") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"foreign: {where} has no config.yaml and result.json that can be read ({type(error).__name__}); left out"
        ) from error
    if identity != record["run_id"] or key != claimed:
        raise UserError(f"foreign: {where}/result.json is not of the config.yaml beside it; left out")
    try:
        own = config_of(key.overrides())
    except UserError:
        return Run(record, key, tuple(key.overrides()), STALE, where, folder)
    extras = _overrides_beyond(key, own, config, where)
    # A key that is null in one and absent in the other is no difference, and yet may be another model.
    same = bool(extras) or run_id(own) == record["run_id"]
    return Run(record, key, (*key.overrides(), *extras), ", ".join(extras) if same else STALE, where, folder)


def _overrides_beyond(key: Key, own: Mapping[str, Any], config: Mapping[str, Any], where: str) -> list[str]:
    """Overrides that turn ``own``, the configuration of the key alone, into ``config``, which is that of ``where``.

    A value that depends on another one (D on Y) may equal the experiment's own and still need an override, because the
    other one has changed. Keys that the experiment does not have are added with a plus, as Hydra requires.
    """
    extras: dict[str, str] = {}
    there = flatten(own).keys()
    while changed := differences(own, config):
        new = {name if name in there else f"+{name}": _as_override(value) for name, (_, value) in changed.items()}
        if new.keys() <= extras.keys():
            break
        extras.update(new)
        try:
            own = config_of([*key.overrides(), *(f"{name}={value}" for name, value in extras.items())], where)
        except UserError:  # a key that today's files lack: the run is shown with its label, and not recorded
            break
    return [f"{name}={extras[name]}" for name in sorted(extras, key=lambda name: name.lstrip("+"))]


def from_line(line: str, source: str, wanted: Container[str] | None = None) -> Run | None:
    """Read the run of a line of results.jsonl: a record with its ``overrides``.

    Args:
        line: The line.
        source: Its file and number, for messages.
        wanted: Experiments to read. None is returned for others, whose configuration is not composed. If None, all.

    Raises:
        UserError: The record is incomplete, or its overrides do not belong to the cell it claims.
    """
    try:
        record = _parsed(line)
        overrides = tuple(record["overrides"])
        given = dict(o.split("=", 1) for o in overrides)
        fold = int(given["data.fold"]) if "data.fold" in given else None
        key = claimed_key(record, fold, "the record")
        problem = malformed(record, ("run_id", "metrics", "dataset", "git_commit"))
    except (UserError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = error if isinstance(error, UserError) else type(error).__name__
        raise UserError(f"corrupt: {source} is not a complete record ({reason}); treated as missing") from error
    if problem is not None:
        raise UserError(f"corrupt: {source} is not a complete record ({problem}); treated as missing")
    own = key.overrides()
    if tuple(overrides[: len(own)]) != tuple(own):
        raise UserError(f"foreign: {source} says it is {' '.join(own)}, but its overrides are others; left out")
    extras = overrides[len(own) :]
    if any("${" in extra or extra.lstrip("+~").startswith("hydra") for extra in extras):
        raise UserError(f"foreign: {source} has overrides that no run is recorded with; left out")
    if wanted is not None and key.experiment not in wanted:
        return None
    if not reproduces(overrides, record["run_id"], source):
        return Run(record, key, overrides, ", ".join((STALE, *extras)), source)
    return Run(record, key, overrides, ", ".join(extras), source)


def _parsed(line: str) -> dict[str, Any]:
    """The record of a line, verified; a ValueError or UserError if it is damaged."""
    line.encode()  # a ValueError if a byte was not UTF-8
    return verified(json.loads(line), "the line")


def check_folders(runs: Iterable[str]) -> None:
    """Raise UserError if a folder of runs does not exist."""
    absent = [root for root in runs if not Path(root).is_dir()]
    if absent:
        raise UserError(f"there is no folder {', '.join(absent)}: --runs names the run folders")


def home(experiment: str) -> int | None:
    """Number of the table whose folder keeps an experiment's results: the first one that shows it."""
    for number in paper.NUMBERS:
        table = paper.load(number)
        if table.kind == "results" and experiment in table.experiments():
            return number
    return None


def as_line(run: Run) -> str:
    """Format a run as a line of results.jsonl: its record, its overrides and, from a run folder, its thinned curves.

    Raises:
        UserError: No overrides of train.py give the run's configuration.
    """
    if not reproduces(run.overrides, run.record["run_id"], run.source):
        raise UserError(
            f"{run.source} ({run.label}): no overrides make its configuration with today's files; not recorded"
        )
    curves = None if run.folder is None else read_curves(run.folder, points=20, names=3)
    line = {**run.record, "overrides": list(run.overrides), **({"curves": curves} if curves else {})}
    return json.dumps(with_checksum(line), sort_keys=True)


def append(runs: Iterable[Run], file: Path, replace: bool = False) -> tuple[int, list[str]]:
    """Append runs to a results.jsonl, one line each.

    Args:
        runs: Finished runs.
        file: The results.jsonl; created if it does not exist.
        replace: If True, rewrite lines of runs that are already in the file. If False, keep them.

    Returns:
        (number of lines added or rewritten, reports on runs that could not be recorded).
    """
    lines = lines_of_file(file)
    known = {identity: at for at, line in enumerate(lines) if (identity := _run_id_of(line)) is not None}
    added, replaced, problems = [], 0, []
    for run in sorted(runs, key=lambda run: (run.key.experiment, run.key.protocol, run.key.seed, run.key.fold or 0)):
        place = known.get(run.record["run_id"])
        if place is not None and not replace:
            continue
        if run.of_user_data:
            problems.append(f"user data: {run.source} is of data that no table is about; not recorded")
            continue
        try:
            line = as_line(run)
        except UserError as error:
            problems.append(str(error))
            continue
        if place is None:
            added.append(line)
        elif line != lines[place]:
            lines[place], replaced = line, replaced + 1
    if added or replaced:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, "\n".join([*lines, *added]) + "\n")
    return len(added) + replaced, problems


def _run_id_of(line: str) -> str | None:
    """Run id of a line; None if the line is damaged, so that its run is recorded again."""
    try:
        identity = _parsed(line)["run_id"]
    except (UserError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return identity if isinstance(identity, str) else None


def _as_override(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value).replace(" ", "").replace('"', "") if isinstance(value, list | dict) else str(value)


def relative(path: Path) -> str:
    """``path`` relative to the checkout if it is inside."""
    path = path.absolute()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Append finished runs to experiments/tableNN/results.jsonl."""
    parser = argparse.ArgumentParser(prog="python -m et.results.collect", description=main.__doc__)
    parser.add_argument("tables", nargs="*", type=int, help="table numbers; default: all")
    runs = os.environ.get("ET_RUNS_DIR", "runs")
    parser.add_argument("--runs", nargs="*", default=[runs], help="run folders, searched at any depth")
    parser.add_argument("--experiments", type=Path, default=EXPERIMENTS, help="where tableNN/ folders are")
    parser.add_argument("--replace", action="store_true", help="overwrite runs that are already recorded")
    options = parser.parse_args(arguments)
    check_folders(options.runs)
    for number in options.tables or paper.NUMBERS:
        table = paper.load(number)
        if table.kind != "results":
            continue
        found = collect(options.runs, experiments=[name for name in table.experiments() if home(name) == number])
        file = options.experiments / f"table{number:02d}" / "results.jsonl"
        count, problems = append(found.runs.values(), file, options.replace)
        print(f"table {number}: {count} runs written to {relative(file)}")
        for problem in (*found.problems, *problems):
            print(f"  {problem}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main))
