"""What the entry points print: a summary after a run, a plain message where the user can mend something."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from et.utils.errors import UserError, exit_on_user_error
from et.utils.paths import command

if TYPE_CHECKING:
    from et.training.task import Task

_WHOLE_ERRORS = "HYDRA_FULL_ERROR"
_raised: set[str] = set()  # holds that name while run_hydra has set it


def run_hydra(main: Callable[[], Any], config_name: str = "train") -> None:
    """Call ``main``, decorated by hydra.main; a configuration that does not compose is told in a sentence.

    Args:
        main: What hydra.main made.
        config_name: The root of its configuration, in conf/.
    """
    if _WHOLE_ERRORS in os.environ:  # a person wants to see Hydra's own
        main()
        return
    os.environ[_WHOLE_ERRORS] = "1"  # Hydra raises errors instead of printing them, until leave_errors_to_hydra()
    _raised.add(_WHOLE_ERRORS)
    try:
        main()
    except (HydraException, ValueError) as error:
        if _WHOLE_ERRORS not in _raised:  # not of the composition
            raise
        from et.runs.identity import explain

        print(f"error: {explain(error, [a for a in sys.argv[1:] if '=' in a], config_name)}", file=sys.stderr)
        raise SystemExit(1) from error
    finally:
        leave_errors_to_hydra()


def leave_errors_to_hydra() -> None:
    """Let Hydra print errors again, with the shortened traceback of a job: the configuration has been composed."""
    if _WHOLE_ERRORS in _raised:
        _raised.discard(_WHOLE_ERRORS)
        os.environ.pop(_WHOLE_ERRORS, None)


def run_training(cfg: DictConfig) -> float | None:
    """Train as ``cfg`` says, print the outcome, and return the monitored metric (for hyper-parameter search)."""

    leave_errors_to_hydra()

    def run() -> float | None:
        if cfg.get("sweep"):
            from et.sweeps.callback import run_cell

            return run_cell(cfg)
        if in_multirun():
            from et.sweeps.callback import run_job

            return run_job(cfg, lambda: train_and_print(cfg))
        return train_and_print(cfg)

    return exit_on_user_error(run)


def in_multirun() -> bool:
    """Whether this process runs the jobs of a Hydra multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def train_and_print(cfg: DictConfig) -> float | None:
    """Train one run, print its record, and return the monitored metric.

    Raises:
        UserError: No experiment is chosen, or what :func:`et.training.run.train` raises.
    """
    if OmegaConf.is_missing(cfg, "name"):
        raise UserError(
            f"no experiment chosen: {command('train')} experiment=NAME (--help lists the names), or choose for "
            "yourself: task=anomaly data=yelp model=bwgnn"
        )
    from et.runs.identity import check_overrides, resolve
    from et.training.run import train

    if HydraConfig.initialized():
        check_overrides(HydraConfig.get().overrides.task, resolve(cfg))
    outcome = train(cfg)
    from et.runs.loading import task_class

    print_record(outcome.record, str(outcome.folder), outcome.skipped, task_class(cfg))
    return outcome.record["metrics"].get(cfg.callbacks.monitor)


def run_repetition(arguments: list[str]) -> int:
    """Repeat the run that ``arguments`` (PATH [key=value ...]) name; exit status 0 if its metrics come out the same."""

    def run() -> int:
        if not arguments or "=" in arguments[0]:
            raise UserError(f"which run? {command('train')} --from-run PATH, a run's folder or its result.json")
        from pathlib import Path

        from et.training.reproduction import repeat

        comparison = repeat(Path(arguments[0]), arguments[1:])
        print_comparison(comparison)
        return 0 if comparison.agrees else 1

    return exit_on_user_error(run)


def print_comparison(comparison: Any) -> None:
    """The metrics of a recorded run and of its repetition side by side, and what else is not as it was."""
    table = Table()
    for column in ("metric", "recorded", "repeated", "difference"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, (recorded, repeated) in comparison.metrics.items():
        numbers = ["-" if value is None else f"{value:.6g}" for value in (recorded, repeated)]
        table.add_row(name, *numbers, "-" if None in (recorded, repeated) else f"{repeated - recorded:.2g}")
    Console().print(table)
    for name, (recorded, repeated) in comparison.circumstances.items():
        print(f"differs: {name}: {recorded} -> {repeated}")
    verdict = "equal, bit for bit" if comparison.equal else "the same within 1e-3" if comparison.agrees else "DIFFERENT"
    print(f"the metrics are {verdict}\n{comparison.folder}")


def run_evaluation(cfg: DictConfig) -> None:
    """Evaluate as ``cfg`` (conf/evaluate.yaml) says and print the metrics."""

    leave_errors_to_hydra()

    def run() -> None:
        if OmegaConf.is_missing(cfg, "run"):
            raise UserError(f"no run chosen: {command('evaluate')} run=PATH, a run's folder or a converted checkpoint")
        from et.training.evaluation import evaluate

        record = evaluate(cfg)
        print_metrics(f"evaluation of {record['run']}", record["dataset"], record["metrics"])
        print(record["output"])

    try:
        exit_on_user_error(run)
    except SystemExit as end:
        if end.code != 1 or not in_multirun():
            raise
        raise UserError("the evaluation failed") from end  # FailedJobs counts it; the others go on


def print_metrics(title: str, dataset: dict[str, Any], metrics: dict[str, float], in_order: bool = False) -> None:
    """Metrics as a table on the terminal, with the data they are of; sorted by name unless ``in_order``."""
    table = Table()
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items() if in_order else sorted(metrics.items()):
        table.add_row(name, f"{value:.4f}")
    print(f"\n{title}\ndata: {dataset['name']} ({dataset['variant']})")
    Console().print(table)
    for warning in dataset.get("warnings", ()):
        print(f"warning: {warning}")


def print_record(record: dict[str, Any], folder: str, skipped: bool, task: type[Task]) -> None:
    """A run on the terminal: a sentence, its four main metrics, and what can be done with it next.

    Args:
        record: Content of result.json.
        folder: The run's folder.
        skipped: True if the run was finished before.
        task: Class of the run's task.
    """
    title = f"{record['experiment']} · {record['protocol']} · {record['fidelity']} · seed {record['seed']}"
    metrics, chosen = record["metrics"], summary_rows(record["metrics"], task.main_metrics)
    print_metrics(title, record["dataset"], {name: metrics[name] for name in chosen}, in_order=True)
    print(summary_sentence(record, task))
    state = "finished before; force=true runs it again" if skipped else f"{record['seconds']:.0f} s of training"
    epochs = f"{record['epochs']} epoch{'s' * (record['epochs'] != 1)}"
    print(f"{record['num_params']:,} parameters, {epochs}, {state}")
    left = len(metrics) - len(chosen)
    print(f"{folder}" + (f" (result.json has {left} more metrics)" if left else ""))
    print("next:")
    if task.draws_figures():
        print(f"  python -m et.results.figures run={folder}  # draw its figures")
    print(f"  {command('evaluate')} run={folder}  # score its weights again")
    print(f"  {command('train')} --from-run {folder}  # train it again and compare")


def summary_rows(metrics: Mapping[str, float], main: Sequence[str], count: int = 4) -> list[str]:
    """Names of the ``count`` metrics that a summary shows: those of ``main``, then those of the test."""
    known = [name for name in main if name in metrics]
    others = sorted((name for name in metrics if name not in known), key=lambda name: not name.startswith("test/"))
    return [*known, *others][:count]


def summary_sentence(record: Mapping[str, Any], task: type[Task]) -> str:
    """The outcome in one sentence: the task's own, or one about the main metric."""
    if sentence := task.summary(record):
        return sentence
    metrics, data = record["metrics"], record["dataset"]["name"]
    name = summary_rows(metrics, task.main_metrics, 1)
    return f"{name[0]} {metrics[name[0]]:.4f} on {data}." if name else f"Nothing was measured on {data}."
