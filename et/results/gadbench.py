"""Detectors of anomalous nodes compared under GADBench's protocol, from searches of equal size.

``python -m et.results.gadbench --runs RUNS`` appends the runs below RUNS to experiments/gadbench/results.jsonl and
renders table.md beside it. A search is the runs of one experiment on trial 0 (``seed=0``). The setting with the best
validation AUPRC is its winner, and the row of the table is the winner on all trials that were run. ``--left`` prints
the commands of the winners' missing trials.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from et.results.cells import paired
from et.results.collect import Run, append, collect, relative
from et.results.formats import signed
from et.results.paper import Metric
from et.utils.errors import exit_on_user_error
from et.utils.files import write_atomically
from et.utils.paths import EXPERIMENTS, command

FOLDER = EXPERIMENTS / "gadbench"
SCORE = "val/average_precision"
AUPRC = Metric("average_precision", "AUPRC", "test/average_precision", "%", "max", scale=100)
COLUMNS = {"AUPRC": AUPRC.key, "AUROC": "test/auc", "Rec@K": "test/recall_at_k"}
TRIALS = 10
SEMI, KNOWN_LABELS = "_semi", "_labels"  # how experiments with few labels go on, and those with known labels end
ENSEMBLE = "_ensemble"  # how methods end that are several networks of another method
# Settings of the data that change the task: runs with another one have a table of their own.
OF_THE_TASK = tuple(f"data.{key}=" for key in ("inductive", "merge", "drop_features", "train_ratio"))
OF_THE_TASK += ("data.one_way_edges=keep",)
ETS = ("", "encoded", "encoded_ensemble")
# Names of the methods by the suffix of their experiments; any other suffix is shown as it is.
METHODS = {
    "": "ET",
    "encoded": "ET, encoded input",
    "encoded_mlp": "MLP, encoded input",
    "encoded_ensemble": "five ETs, encoded input",
    "encoded_mlp_ensemble": "five MLPs, encoded input",
    "mlp": "MLP",
    "gcn": "GCN",
    "sage": "GraphSAGE",
    "gin": "GIN",
    "gat": "GAT",
    "gt": "graph transformer",
    "bwgnn": "BWGNN",
    "pmp": "PMP",
    "trees": "boosted trees",
    "xgbgraph": "XGBGraph",
    "rfgraph": "RFGraph",
}


@dataclass(frozen=True)
class Row:
    """A method on a data set: the winner of its search.

    Attributes:
        data: Name of the data set, with what else the methods of a table share.
        method: Suffix of the experiment.
        known_labels: Whether the method reads labels of training nodes.
        searched: Number of settings that were run on trial 0. For an ensemble with the winning setting of its single
            network, the number of those of that network.
        validation: Validation AUPRC of the winner on trial 0.
        runs: Runs of the winner, one per trial.
    """

    data: str
    method: str
    known_labels: bool
    searched: int
    validation: float
    runs: tuple[Run, ...]

    def values(self, key: str) -> list[float]:
        """A metric of every trial, in percent."""
        return [100 * run.record["metrics"][key] for run in self.runs]

    def commands(self) -> str | None:
        """Command that runs the missing trials; None if there are none."""
        there = {run.key.seed for run in self.runs}
        missing = [str(seed) for seed in range(TRIALS) if seed not in there]
        if not missing:
            return None
        run, settings = self.runs[0], _settings(self.runs[0])
        own = [o for o in run.key.overrides() if not o.startswith("seed=")]
        seeds = f"'seed=choice({','.join(missing)})'"
        return " ".join([command("train"), "--multirun", *own, *(f"'{setting}'" for setting in settings), seeds])


def _settings(run: Run) -> list[str]:
    """Overrides of a run beyond its experiment, seed, protocol and fidelity."""
    return list(run.overrides[len(run.key.overrides()) :])


def compared(run: Run) -> bool:
    """Whether a run belongs to the comparison."""
    return run.key.protocol == "gadbench" and "_gadbench" in run.key.experiment


def place(run: Run) -> tuple[str, str, bool]:
    """Data, method and regime of a run: its table and its row."""
    _, _, tail = run.key.experiment.partition("_gadbench")
    few, tail = run.record["dataset"].get("semi_supervised", False), tail.removeprefix(SEMI)
    shared = [setting for setting in run.overrides if setting.startswith(OF_THE_TASK)]
    data = ", ".join([run.record["dataset"]["name"], *["semi-supervised"] * few, *shared])
    return data, tail.removesuffix(KNOWN_LABELS).lstrip("_"), tail.endswith(KNOWN_LABELS)


def rows(runs: Iterable[Run]) -> list[Row]:
    """A row for every method with a finished trial 0, sorted by data, regime and mean AUPRC."""
    found: dict[tuple[str, str, bool], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in filter(compared, runs):
        found[place(run)][run.label].append(run)
    table: dict[tuple[str, str, bool], Row] = {}
    for where, settings in sorted(found.items()):  # an ensemble after its single network
        first = {
            label: run.record["metrics"][SCORE]
            for label, those in settings.items()
            for run in those
            if run.key.seed == 0
        }
        if not first:
            continue
        winner = max(first, key=first.__getitem__)
        trials = tuple(sorted(settings[winner], key=lambda run: run.key.seed))
        searched = len(first)
        single = table.get((where[0], where[1].removesuffix(ENSEMBLE), where[2]))
        if single is not None and _settings(single.runs[0]) == _settings(trials[0]):
            searched = single.searched
        table[where] = Row(*where, searched, first[winner], trials)
    return sorted(table.values(), key=lambda row: (row.data, row.known_labels, -np.mean(row.values(AUPRC.key))))


def render(table: Sequence[Row]) -> str:
    """Markdown: for every data set and regime its methods, best mean AUPRC first."""
    lines = [
        "# Anomalous nodes under GADBench's protocol",
        "",
        "Mean ± standard deviation over trials, test nodes, in %. *Settings* counts what was tried on trial 0:",
        "the defaults and a random search. The setting with the best validation AUPRC is shown. Ensembles have the",
        "winning setting of their single network. The last column is the difference in AUPRC of the ET with the best",
        "validation AUPRC on the trials that both have, with p of a paired t-test.",
        "Rendered by `python -m et.results.gadbench`.",
    ]
    for data, known in sorted({(row.data, row.known_labels) for row in table}):
        those = [row for row in table if (row.data, row.known_labels) == (data, known)]
        lines += ["", f"## {data}, {'known labels' if known else 'features only'}", ""]
        lines += [f"| method | settings | trials | {' | '.join(COLUMNS)} | ET ahead by |"]
        lines += [f"|---|{'---:|' * (3 + len(COLUMNS))}"]
        best = max((row for row in those if row.method in ETS), key=lambda row: row.validation, default=None)
        for row in those:
            numbers = [_mean(row.values(key)) for key in COLUMNS.values()]
            cells = [METHODS.get(row.method, row.method), str(row.searched), str(len(row.runs)), *numbers]
            lines.append(f"| {' | '.join([*cells, _lead(best, row)])} |")
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def _lead(best: Row | None, row: Row) -> str:
    """How far the AUPRC of ``best`` is ahead of that of ``row`` on the trials of both."""
    if best is None or best is row:
        return ""
    comparison = paired(best.runs, row.runs, AUPRC, row.method)
    if comparison is None:
        return ""
    p = "" if comparison.p_value is None else f"p = {comparison.p_value:.2g}, "
    return f"{signed(comparison.difference, 1)} ({p}n = {comparison.n})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Record runs under GADBench's protocol and render their table."""
    parser = argparse.ArgumentParser(prog="python -m et.results.gadbench", description=main.__doc__)
    parser.add_argument("--runs", nargs="*", default=[], help="run folders to record, searched at any depth")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where results.jsonl and table.md are")
    parser.add_argument("--left", action="store_true", help="only print the commands of missing trials")
    options = parser.parse_args(arguments)
    file = options.folder / "results.jsonl"
    if options.left:
        print(*filter(None, (row.commands() for row in rows(collect(options.runs, [file]).runs.values()))), sep="\n")
        return 0
    new = collect(options.runs)
    count, problems = append(filter(compared, new.runs.values()), file)
    print(f"{count} runs written to {relative(file)}", *new.problems, *problems, sep="\n")
    table = rows(collect(lines=[file]).runs.values())
    write_atomically(options.folder / "table.md", render(table))
    print(f"{len(table)} methods in {relative(options.folder / 'table.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main))
