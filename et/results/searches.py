"""Records of hyperparameter searches (conf/sweep/search_anomaly.yaml), and the experiment files written from them.

``python -m et.results.searches --runs RUNS`` appends every trial below RUNS to experiments/table01/searches.jsonl and
writes conf/experiment/<experiment>_tuned.yaml from the best trial of each experiment. With ``--table`` it only prints
the trials. A run is a trial if its configuration differs from the experiment's own; keep each search in its own folder.
A setting that the sampler proposed twice is one run.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from et.results.collect import Run, append, collect, relative
from et.results.paper import TUNED
from et.runs.identity import flatten
from et.utils.errors import UserError
from et.utils.paths import EXPERIMENTS, ROOT
from et.utils.startup import tolerate_encoding

FILE = EXPERIMENTS / "table01" / "searches.jsonl"
SCORE = "val/f1_macro"  # of the best epoch: what a trial of table 1 returned to the search
COLUMNS = {"AUROC": "test/auc", "AUPRC": "test/average_precision", "Rec@K": "test/recall_at_k"}


def trials(runs: Iterable[Run], score: str = SCORE) -> dict[str, list[Run]]:
    """Trials of each experiment's search, best validation score first; ties are broken by the order of the runs.

    A search has one seed, that of most settings: runs of the best one with other seeds are no trials. Trials on the
    user's own data are those of a search of its own, "EXPERIMENT on DATA".
    """
    found: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.label and not run.key.experiment.endswith(TUNED):
            on = f" on {run.record['dataset']['name']}" if run.of_user_data else ""
            found[run.key.experiment + on].append(run)
    return {
        name: sorted(
            (run for run in those if run.key.seed == _seed_of_most(those)),
            key=lambda run: -run.record["metrics"][score],
        )
        for name, those in found.items()
    }


def _seed_of_most(runs: Sequence[Run]) -> int:
    counts = Counter(run.key.seed for run in runs)
    return min(counts, key=lambda seed: (-counts[seed], seed))


def settings(run: Run) -> dict[str, Any]:
    """Settings that a trial changed in its experiment, nested as in a configuration file.

    The sections of trainer and callbacks are left out: they are the budget of a trial and how its epoch is chosen.
    """
    extras = [override.lstrip("+") for override in run.overrides[len(run.key.overrides()) :]]
    changed = [override for override in extras if not override.startswith(("trainer.", "callbacks."))]
    return OmegaConf.to_container(OmegaConf.from_dotlist(changed))


def experiment_file(best: Run, count: int) -> str:
    """Text of the experiment file with the settings of ``best``, the best of ``count`` different ones."""
    name, score = best.key.experiment, best.record["metrics"][SCORE]
    body = {"defaults": [name, "_self_"], "name": f"{name}{TUNED}", **settings(best)}
    return (
        "# @package _global_\n"
        f"# {name} beyond the paper: the best of {count} settings by validation macro-F1 ({score:.4f}; split of seed "
        f"{best.key.seed}).\n"
        f"# Written by python -m et.results.searches from run {best.record['run_id']} of {relative(FILE)}.\n"
        f"{yaml.safe_dump(body, sort_keys=False, default_flow_style=None, width=118)}"
    )


def write_experiments(found: Mapping[str, Sequence[Run]], folder: Path) -> list[Path]:
    """An experiment file for every search, in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, runs in sorted(found.items()):
        paths.append(folder / f"{name}{TUNED}.yaml")
        paths[-1].write_text(experiment_file(runs[0], len(runs)), encoding="utf-8")
    return paths


def table(found: Mapping[str, Sequence[Run]], score: str, every_trial: bool = False) -> str:
    """Markdown tables of searches, one for features only and one for known labels, best validation score first.

    Args:
        found: Trials by experiment, the best first (:func:`trials`).
        score: Validation metric that chose the best.
        every_trial: Show all trials instead of the best of each experiment.
    """
    head = ["experiment", "trials", score, *COLUMNS, "settings"]
    parts: dict[bool, list[tuple[float, str]]] = {False: [], True: []}
    for name, runs in found.items():
        for run in runs if every_trial else runs[:1]:
            metrics = run.record["metrics"]
            numbers = (f"{100 * metrics.get(key, math.nan):.1f}" for key in (score, *COLUMNS.values()))
            cells = [name, str(len(runs)), *numbers, " ".join(map(short, flatten(settings(run)).items()))]
            parts[name.endswith("_labels")].append((metrics[score], f"| {' | '.join(cells)} |"))
    lines = []
    for title, rows in zip(("Features only", "Known labels"), parts.values(), strict=True):
        if rows:
            ranked = [line for _, line in sorted(rows, key=lambda row: -row[0])]
            lines += [f"{title}:", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *ranked, ""]
    return "\n".join(lines)


def short(setting: tuple[str, Any]) -> str:
    """A setting (key, value) as ``key=value``, a float with four digits."""
    key, value = setting
    return f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Record the trials of searches and write the experiment files of the best."""
    parser = argparse.ArgumentParser(prog="python -m et.results.searches", description=main.__doc__)
    parser.add_argument("--runs", nargs="+", required=True, help="folders of the searches, searched at any depth")
    parser.add_argument("--file", type=Path, default=FILE, help="where trials are recorded")
    parser.add_argument(
        "--experiments", type=Path, default=ROOT / "conf" / "experiment", help="where experiment files go"
    )
    parser.add_argument(
        "--table", choices=("best", "all"), nargs="?", const="best", help="only print the best trials, or all"
    )
    parser.add_argument("--score", help="validation metric that ranks the table (default: val/average_precision)")
    options = parser.parse_args(arguments)
    if options.score and not options.table:
        parser.error(f"--score goes with --table: experiment files are written from the best {SCORE}")
    new, score = collect(options.runs), (options.score or "val/average_precision") if options.table else SCORE
    try:
        if options.table:
            print(*new.problems, sep="\n", end="\n" * bool(new.problems), file=sys.stderr)
            print(table(trials(new.runs.values(), score), score, options.table == "all"))
            return 0
        own = [run for run in new.runs.values() if run.key.protocol != "gadbench"]
        if others := sorted({run.key.experiment for run in new.runs.values() if run.key.protocol == "gadbench"}):
            new.problems.append(
                f"left out: {', '.join(others)}: searches by average precision have no experiment files; "
                "python -m et.results.gadbench records them, and --table shows them"
            )
        _, problems = append((run for runs in trials(own).values() for run in runs), options.file)
        found = trials(collect(lines=[options.file]).runs.values())
        paths = write_experiments(found, options.experiments)
    except (OSError, UserError, KeyError) as error:
        hint = f"; a trial's record must have {score}" if isinstance(error, KeyError) else ""
        print(f"error: {error}{hint}", file=sys.stderr)
        return 1
    for problem in (*new.problems, *problems):
        print(problem)
    for path, (name, runs) in zip(paths, sorted(found.items()), strict=True):
        best, worst = (runs[i].record["metrics"][SCORE] for i in (0, -1))
        print(f"{name}: {len(runs)} settings, {SCORE} {worst:.4f} to {best:.4f}; {relative(path)}: {runs[0].label}")
    return 0


if __name__ == "__main__":
    tolerate_encoding()
    sys.exit(main())
