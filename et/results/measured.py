"""Measured values of the cells of a table: means over runs, comparisons, and missing runs.

Not pandas: a cell keeps its runs, which the report page opens, and the average itself is two calls of ``statistics``.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import yaml

from et.results.collect import Collection, Run
from et.results.paper import Condition, Method, Metric, PaperValue, Table
from et.results.settings import has_experiment
from et.sweeps.cells import jobs
from et.utils.paths import CONF, command

PROTOCOLS = ("held_out", "released")
# Settings in which the methods of a comparison may differ: each has its own learning-rate schedule, validation follows
# the epochs, and precision is chosen for speed (bfloat16 makes ET faster on the CPU and GIN slower).
FREE = ("optim.schedule.name", "optim.schedule.warmup_epochs", "trainer.check_val_every_n_epoch", "trainer.precision")
FREE += ("data.one_hot", "data.num_features", "data.num_edge_features")  # how a method reads types, and what it counts
# Settings of models that say what they read
INPUTS = ("model.known_labels=", "model.label_counts=", "model.label_hops=")
USUAL_FIDELITY = {"held_out": "paper", "released": "released"}


@dataclass(frozen=True)
class Measured:
    """Mean and standard deviation of one cell under one protocol.

    Attributes:
        mean, std: In the metric's unit; ``std`` is None for a single run without repeated scorings.
        n: Number of runs.
        over: What the deviation is over, such as "seeds".
        runs: The runs.
    """

    mean: float
    std: float | None
    n: int
    over: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Line:
    """A row of a table: one method under one condition, on one variant of the data, with one configuration.

    ``variant`` is empty for the published data, ``label`` for the experiment's own configuration.
    """

    condition: Condition
    method: Method
    variant: str
    label: str
    runs: tuple[Run, ...]

    def of(self, protocol: str) -> tuple[Run, ...]:
        """Runs of the row under ``protocol``."""
        return tuple(run for run in self.runs if run.key.protocol == protocol)


def lines_of(table: Table, collection: Collection) -> list[Line]:
    """Rows of the table: conditions in order, methods in order, then data variants and other configurations.

    Conditions that are not in the paper are left out if they have no runs.
    """
    by_experiment: dict[str, dict[tuple[str, str], list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in collection.runs.values():
        if run.of_user_data:
            continue
        by_experiment[run.key.experiment][(run.variant, _label(run))].append(run)
    lines = []
    for condition in table.conditions:
        under = []
        for method in table.methods:
            groups = by_experiment.get(method.experiment_for(condition.name) or "", {})
            groups = {key: tuple(sorted(runs, key=lambda run: run.key)) for key, runs in sorted(groups.items())}
            # The cell itself has its line even where nothing, or only something else, was run. On data that the paper
            # does not have, any variant fills it.
            filled = any(not label and (not variant or not condition.in_paper) for variant, label in groups)
            runnable = method.experiment is not None and has_experiment(method.experiment_for(condition.name))
            if not filled and ((condition.in_paper and method.in_paper) or runnable):
                under.append(Line(condition, method, "", "", ()))
            under += [Line(condition, method, variant, label, runs) for (variant, label), runs in groups.items()]
        if condition.in_paper or any(line.runs for line in under):
            lines += under
    return lines


def _label(run: Run) -> str:
    """Differences of a run's configuration from the one that belongs in its cell, as text."""
    usual = run.key.fidelity == USUAL_FIDELITY.get(run.key.protocol)
    return ", ".join(part for part in ("" if usual else f"fidelity={run.key.fidelity}", run.label) if part)


def measure(table: Table, metric: Metric, line: Line, protocol: str) -> Measured | None:
    """Mean and deviation of a metric over the runs of a row; None if no run has it.

    A single run that records the deviation of its own repeated scorings (:attr:`Metric.spread`) is shown with it.
    """
    if not metric.applies(line.condition.name) or protocol not in metric.protocols:
        return None
    runs = tuple(run for run in line.of(protocol) if _finite(run.record["metrics"].get(metric.key)))
    if not runs:
        return None
    values = [run.record["metrics"][metric.key] * metric.scale for run in runs]
    mean = statistics.fmean(values)
    if len(values) > 1:
        return Measured(mean, statistics.stdev(values), len(values), deviation_over(table, runs, protocol), runs)
    spread, scorings = runs[0].record["metrics"].get(metric.spread or f"{metric.key}_std"), scorings_of(table, runs[0])
    if not _finite(spread) or scorings == 1:
        return Measured(mean, None, 1, "", runs)
    within = table.deviation.get("within", "scorings of one model")
    return Measured(mean, spread * metric.scale, 1, within if scorings is None else f"{scorings} {within}", runs)


def scorings_of(table: Table, run: Run) -> int | None:
    """Number of scorings behind the deviation within one run; None if the table does not state it."""
    given = [override.split("=")[1] for override in run.overrides if override.startswith("task.repetitions=")]
    return int(given[-1]) if given else table.deviation.get("scorings")


def deviation_over(table: Table, runs: Iterable[Run], protocol: str) -> str:
    """What the deviation of several runs is over: folds, seeds, or the table's own term for seeds."""
    runs = tuple(runs)
    folds, seeds = len({run.key.fold for run in runs}), len({run.key.seed for run in runs})
    if folds > 1:
        return "folds" if seeds == 1 else f"folds of {seeds} seeds"
    return table.deviation.get(protocol, "seeds")


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


@dataclass(frozen=True)
class Comparison:
    """An Energy Transformer against the best baseline.

    Attributes:
        baseline: Name of the baseline.
        difference: Mean difference over the shared splits, in the metric's unit.
        n: Number of shared splits.
        p_value: p-value of the paired t-test, or None if it cannot be computed.
    """

    baseline: str
    difference: float
    n: int
    p_value: float | None


def best(measured: Iterable[tuple[Line, Measured]], metric: Metric) -> list[Line]:
    """Rows with the best mean, including ties; empty if the metric has no direction."""
    measured = list(measured)
    if metric.direction == "none" or not measured:
        return []
    top = (max if metric.direction == "max" else min)(m.mean for _, m in measured)
    return [line for line, m in measured if m.mean == top]


def settings_of(label: str) -> set[str]:
    """The settings of a label, without those that may differ between methods: of their models, and :data:`FREE`."""
    parts = (part.lstrip("+~") for part in label.split(", ") if part)
    return {
        part
        for part in parts
        if part.split("=")[0] not in FREE and (part.startswith(INPUTS) or not part.startswith("model."))
    }


def best_baseline(
    line: Line, measured: Iterable[tuple[Line, Measured]], metric: Metric
) -> tuple[Line, Measured] | None:
    """The best baseline that an Energy Transformer is compared with; None if there is none.

    It is of the same kind (tuned or not), on the same data and has the same settings, such as fewer epochs. Settings
    of the models may differ.
    """
    found = [
        (other, m)
        for other, m in measured
        if not other.method.ours
        and (other.condition.name, other.variant) == (line.condition.name, line.variant)
        and other.method.tuned == line.method.tuned
        and settings_of(other.label) == settings_of(line.label)
    ]
    top = best(found, metric)
    return next((pair for pair in found if pair[0] is top[0]), None) if top else None


def comparisons(table: Table, metric: Metric, lines: Iterable[Line], protocol: str) -> dict[int, Comparison]:
    """Comparison of each Energy Transformer with its :func:`best_baseline`, by row index.

    Pairs share seed, fold and the hash of the split.
    """
    rows = [(index, line, measure(table, metric, line, protocol)) for index, line in enumerate(lines)]
    measured = [(index, line, m) for index, line, m in rows if m is not None]
    found = {}
    for index, line, ours in measured:
        theirs = best_baseline(line, [(other, m) for _, other, m in measured], metric) if line.method.ours else None
        if theirs is not None:
            comparison = paired(ours.runs, theirs[1].runs, metric, theirs[0].method.name)
            if comparison is not None:
                found[index] = comparison
    return found


def paired(ours: Iterable[Run], theirs: Iterable[Run], metric: Metric, baseline: str) -> Comparison | None:
    """Paired t-test over the shared splits; None if there are none.

    p is None below three pairs and if all differences are equal. The splits are redrawn from one data set, so the
    differences are not independent and p is optimistic.
    """
    other = {run.split: run.record["metrics"][metric.key] for run in theirs if run.split[2] is not None}
    pairs = [(run.record["metrics"][metric.key], other[run.split]) for run in ours if run.split in other]
    if not pairs:
        return None
    differences = [(a - b) * metric.scale for a, b in pairs]
    p_value = None
    if len(pairs) > 2 and statistics.pstdev(differences) > 0:
        from scipy.stats import ttest_rel

        p_value = float(ttest_rel([a for a, _ in pairs], [b for _, b in pairs]).pvalue)
    return Comparison(baseline, statistics.fmean(differences), len(pairs), p_value)


def difference(measured: Measured | None, cell: PaperValue | None) -> float | None:
    """Measured minus paper, in the metric's unit."""
    return None if measured is None or cell is None else measured.mean - cell.mean


def mixed_commits(lines: Iterable[Line]) -> list[str]:
    """Reports on cells whose runs come from several commits, or from a tree with uncommitted changes."""
    reports = []
    for line in lines:
        for protocol in PROTOCOLS:
            commits = sorted({str(run.record.get("git_commit", "unknown")) for run in line.of(protocol)})
            name = f"{line.method.experiment_for(line.condition.name)} ({protocol})"
            if len(commits) > 1:
                reports.append(f"mixed commits: {name} averages runs of {', '.join(c[:18] for c in commits)}")
            elif any("+" in commit or commit == "unknown" for commit in commits):
                reports.append(f"no clean commit: {name} was run from {commits[0][:18]}")
    return reports


def expected_runs(number: int) -> Counter[tuple[str, str]]:
    """Number of runs of each (experiment, protocol) in the table's sweep; empty if the table has no sweep."""
    file = CONF / "sweep" / f"table{number:02d}.yaml"
    if not file.exists():
        return Counter()
    raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    named = [dict(override.split("=", 1) for override in job) for job in jobs(raw)]
    return Counter((job["experiment"], job["protocol"]) for job in named)


def missing(table: Table, lines: Iterable[Line], expected: Counter[tuple[str, str]]) -> list[tuple[str, str]]:
    """(missing runs, command that runs them) for every cell of the table's sweep that is absent or incomplete."""
    have: Counter[tuple[str, str]] = Counter()
    for line in lines:
        if not line.label and (not line.variant or not line.condition.in_paper):
            name = line.method.experiment_for(line.condition.name)
            have.update((name, run.key.protocol) for run in line.runs)
    left: dict[str, list[str]] = {}
    for (name, protocol), count in expected.items():
        if have[name, protocol] < count:
            left.setdefault(name, []).append(f"{protocol} {have[name, protocol]} of {count}")
    sweep = f"{command('train')} --multirun sweep=table{table.number:02d}"
    return [(f"{name}: {', '.join(parts)} runs", f"{sweep} experiment={name}") for name, parts in left.items()]
