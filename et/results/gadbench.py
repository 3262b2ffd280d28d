"""Detectors of anomalous nodes compared under GADBench's protocol, from searches of equal size.

``python -m et.results.gadbench --runs RUNS`` appends the runs below RUNS to experiments/gadbench/results.jsonl and
renders table.md beside it. A search is the runs of one experiment on trial 0 (``seed=0``). The setting with the best
validation AUPRC is its winner, and the row of the table is the winner on all trials that were run. ``--left`` prints
the commands of the winners' missing trials and of their blends with the winning trees. Their runs go below RUNS too.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from et.results.collect import Run, append, check_folders, collect, relative
from et.results.formats import signed
from et.results.measured import paired
from et.results.paper import Metric
from et.runs.identity import config_of
from et.utils.errors import exit_on_user_error
from et.utils.files import write_atomically
from et.utils.paths import EXPERIMENTS, command

FOLDER = EXPERIMENTS / "gadbench"
SCORE = "val/average_precision"
AUPRC = Metric("average_precision", "AUPRC", "test/average_precision", "%", "max", scale=100)
COLUMNS = {"AUPRC": AUPRC.key, "AUROC": "test/auc", "Rec@K": "test/recall_at_k"}
TRIALS = 10
SEMI, KNOWN_LABELS = "_semi", "_labels"  # how experiments with few labels go on, and those with known labels end
BLEND = "_blend"  # how methods end that are another method with trees
OF_THE_INPUT = ("model.hops=", "model.degrees=", "model.label_hops=")  # settings of trees that say what they read
# Settings that change the task or what is known: runs with another one have a table of their own.
OF_THE_TASK = tuple(f"data.{key}=" for key in ("inductive", "merge", "drop_features", "train_ratio", "group_by"))
OF_THE_TASK += ("data.one_way_edges=keep", "model.label_hops=2")
ETS = ("", "encoded")
# Names of the methods by the suffix of their experiments; any other suffix is shown as it is.
METHODS = {
    "": "ET",
    "encoded": "ET, encoded input",
    "encoded_mlp": "MLP, encoded input",
    "encoded_ensemble": "five ETs, encoded input",
    "encoded_mlp_ensemble": "five MLPs, encoded input",
    "encoded_no_attention": "ET without attention, encoded input",
    "encoded_two_blocks": "ET of two blocks, encoded input",
    "encoded_energies": "ET with energies, encoded input",
    "encoded_trees": "boosted trees, encoded input",
    "encoded_trees_bagged": "boosted trees, bagged, encoded input",
    "encoded_blend": "ET and boosted trees",
    "encoded_mlp_blend": "MLP and boosted trees",
    "mlp": "MLP",
    "gcn": "GCN",
    "sage": "GraphSAGE",
    "gin": "GIN",
    "gat": "GAT",
    "gt": "graph transformer",
    "bwgnn": "BWGNN",
    "pmp": "PMP",
    "trees": "boosted trees",
    "trees_bagged": "boosted trees, bagged",
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
        searched: Number of settings that were run on trial 0. For a blend, those of its network and of the trees.
        validation: Validation AUPRC of the winner on trial 0.
        runs: Runs of the winner, one per trial.
    """

    data: str
    method: str
    known_labels: bool
    searched: int
    validation: float
    runs: tuple[Run, ...]

    @property
    def settings(self) -> list[str]:
        """Overrides beyond experiment, seed, protocol and fidelity."""
        return _settings(self.runs[0])

    def values(self, key: str) -> list[float]:
        """A metric of every trial, in percent."""
        return [100 * run.record["metrics"][key] for run in self.runs]

    def command(self) -> str | None:
        """Command that runs the missing trials; None if there are none."""
        there = {run.key.seed for run in self.runs}
        return _command(self.runs[0].key.experiment, self.settings, [t for t in range(TRIALS) if t not in there])


def _command(experiment: str, settings: Sequence[str], trials: Sequence[int]) -> str | None:
    if not trials:
        return None
    own = [f"experiment={experiment}", "protocol=gadbench", "fidelity=paper"]
    seeds = f"'seed=choice({','.join(map(str, trials))})'"
    return " ".join([command("train"), "--multirun", *own, *(f"'{setting}'" for setting in settings), seeds])


def commands_left(table: Sequence[Row]) -> list[str]:
    """Commands that run the missing trials of all rows, and the blends of two winners that have no row."""
    found = [row.command() for row in table]
    of = {(row.data, row.method, row.known_labels): row for row in table}
    for (data, method, known), row in of.items():
        blend, trees = method + BLEND, of.get((data, "trees", known))
        if blend in METHODS and (data, blend, known) not in of and trees is not None:
            experiment = row.runs[0].key.experiment.removesuffix(KNOWN_LABELS) + BLEND + known * KNOWN_LABELS
            found.append(_command(experiment, blended(row, trees), range(TRIALS)))
    return [command for command in found if command is not None]


def _settings(run: Run) -> list[str]:
    return list(run.overrides[len(run.key.overrides()) :])


def blended(network: Row, trees: Row) -> list[str]:
    """Settings of a blend of two methods.

    Its trees take the input of the network. They add hops and degrees to it only where it has none.
    """
    of_trees = [s for s in trees.settings if s.startswith("model.") and not s.startswith(OF_THE_INPUT)]
    settings = [*network.settings, *(s.replace("model.", "model.trees.", 1) for s in of_trees)]
    if not config_of(network.runs[0].overrides)["data"]["neighbour_hops"]:
        model = config_of(trees.runs[0].overrides)["model"]
        settings += [f"model.trees.hops={model['hops']}"] + ["+model.trees.degrees=true"] * model.get("degrees", False)
    return settings


def lacking(run: Run) -> list[str]:
    """Names of the metrics of the table that a run does not have."""
    return [name for name in (SCORE, *COLUMNS.values()) if name not in run.record["metrics"]]


def compared(run: Run) -> bool:
    """Whether a run belongs to the comparison."""
    if run.of_user_data or lacking(run):
        return False
    return (run.key.protocol, run.key.fidelity) == ("gadbench", "paper") and "_gadbench" in run.key.experiment


def place(run: Run) -> tuple[str, str, bool]:
    """Data, method and regime of a run: its table and its row."""
    _, _, tail = run.key.experiment.partition("_gadbench")
    few, tail = run.record["dataset"].get("semi_supervised", False), tail.removeprefix(SEMI)
    shared = [setting for setting in run.overrides if setting.startswith(OF_THE_TASK)]
    data = ", ".join([run.record["dataset"]["name"], *["semi-supervised"] * few, *shared])
    return data, tail.removesuffix(KNOWN_LABELS).lstrip("_"), tail.endswith(KNOWN_LABELS)


def rows(runs: Iterable[Run]) -> list[Row]:
    """A row for every method with a finished trial 0, sorted by data, regime and mean AUPRC.

    A blend has a row if it is of the winners; blends with other settings have none.
    """
    found: dict[tuple[str, str, bool], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in filter(compared, runs):
        found[place(run)][run.label].append(run)
    table: dict[tuple[str, str, bool], Row] = {}
    for where, settings in sorted(found.items(), key=lambda item: BLEND in item[0][1]):
        first = {
            label: run.record["metrics"][SCORE]
            for label, those in settings.items()
            for run in those
            if run.key.seed == 0
        }
        if not first:
            continue
        winner = max(first, key=first.__getitem__)
        parts = [table.get((where[0], part, where[2])) for part in (where[1].removesuffix(BLEND), "trees")]
        if where[1].endswith(BLEND):
            if None in parts:
                continue
            of_winners = [label for label in first if set(_settings(settings[label][0])) == set(blended(*parts))]
            if not of_winners:
                continue
            winner = of_winners[0]
        trials = tuple(sorted(settings[winner], key=lambda run: run.key.seed))
        searched = sum(part.searched for part in parts) if where[1].endswith(BLEND) else len(first)
        table[where] = Row(*where, searched, first[winner], trials)
    return sorted(table.values(), key=lambda row: (row.data, row.known_labels, -np.mean(row.values(AUPRC.key))))


def render(table: Sequence[Row]) -> str:
    """Markdown: for every data set and regime its methods, best mean AUPRC first."""
    lines = [
        "# Anomalous nodes under GADBench's protocol",
        "",
        "Mean ± standard deviation over trials, test nodes, in %. *Settings* counts what was tried on trial 0:",
        "the defaults, and others drawn at random or chosen by hand. The setting with the best validation AUPRC is",
        "shown. A network *and boosted trees* is the mean of their log-odds, with the winning settings of both. The",
        "trees read the network's input, and append means to it only where it has none. Tables with",
        "`model.label_hops=2` (known labels two steps away) or `data.drop_features` have the settings that won without",
        "it. *Ahead by* are differences in AUPRC on the trials that both have: of the ET with the better validation",
        "AUPRC, and of ET and boosted trees. Each p is of a two-sided paired t-test, without a correction for many",
        "comparisons. Splits overlap, so p is too small. *Run* is the run id on trial 0 of the setting shown; its line",
        "of [results.jsonl](results.jsonl) has the setting. Scores can tie for the last places of Rec@K: in most",
        "records the order of the tied nodes decides, in the others each counts with their share of anomalies.",
        "Rendered by `python -m et.results.gadbench`.",
    ]
    for data, known in sorted({(row.data, row.known_labels) for row in table}):
        those = [row for row in table if (row.data, row.known_labels) == (data, known)]
        lines += ["", f"## {data}, {'known labels' if known else 'features only'}", ""]
        lines += [f"| method | settings | trials | {' | '.join(COLUMNS)} | ET ahead by | ET and trees ahead by | run |"]
        lines += [f"|---|{'---:|' * (4 + len(COLUMNS))}---|"]
        best = max((row for row in those if row.method in ETS), key=lambda row: row.validation, default=None)
        blend = next((row for row in those if row.method == "encoded_blend"), None)
        for row in those:
            first = next(run.record["run_id"] for run in row.runs if run.key.seed == 0)
            numbers = [mean(row.values(key)) for key in COLUMNS.values()]
            cells = [METHODS.get(row.method, row.method), str(row.searched), str(len(row.runs)), *numbers]
            lines.append(f"| {' | '.join([*cells, _lead(best, row), _lead(blend, row), first])} |")
    return "\n".join(lines) + "\n"


def mean(values: Sequence[float]) -> str:
    """Mean and standard deviation with one decimal; of one value that value."""
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
    parser.add_argument("--left", action="store_true", help="only print the commands of missing trials and blends")
    options = parser.parse_args(arguments)
    file = options.folder / "results.jsonl"
    if options.left:
        into = f" paths.runs={options.runs[0]}" if options.runs else ""
        print(*(f"{line}{into}" for line in commands_left(rows(collect(options.runs, [file]).runs.values()))), sep="\n")
        return 0
    check_folders(options.runs)
    new = collect(options.runs)
    count, problems = append(filter(compared, new.runs.values()), file)
    print(f"{count} runs written to {relative(file)}", *new.problems, *problems, sep="\n")
    recorded = collect(lines=[file])
    for run in (*new.runs.values(), *recorded.runs.values()):
        if run.key.protocol == "gadbench" and lacking(run):
            recorded.problems.append(f"incomplete: {run.source} lacks {', '.join(lacking(run))}; left out")
    print(*recorded.problems, sep="\n", end="\n" * bool(recorded.problems))
    table = rows(recorded.runs.values())
    options.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(options.folder / "table.md", render(table))
    print(f"{len(table)} methods in {relative(options.folder / 'table.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main))
