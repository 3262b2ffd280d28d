"""Hydra sweeper ``optuna``: proposes trials with Optuna, runs each as a job, and tells Optuna the monitored metric.

It replaces the package hydra-optuna-sweeper, which pins Optuna below 3. That version cannot store a study with
SQLAlchemy 2, and the package ends the whole search at the first trial that fails. The keys of the search files are the
same. Hydra looks for sweepers in the namespace hydra_plugins only, hence this place.

- A trial that fails, or whose score is not a number, is told to Optuna as failed, and the search goes on.
- Trial ``n`` is proposed by a sampler seeded from (seed, n), so a resumed search proposes what an uninterrupted one
  would have.
- Trials that a stored study had started before it was interrupted are run first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep, Transformer
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

# Optuna, torch and the project are imported late: Hydra imports every plugin at every start.


class OptunaSweeper(Sweeper):
    """Search for the overrides with the best score.

    Args:
        sampler: Configuration of an Optuna sampler. A ``seed`` other than None makes the search reproducible.
        direction: ``minimize`` or ``maximize``.
        storage: URL of the database that keeps the study. If None, it is kept in memory.
        study_name: Name of the study in its storage. If None, Optuna chooses one.
        n_trials: Trials of the whole study, those of a stored study included.
        n_jobs: Trials that are proposed and launched together.
        max_failure_rate: Share of failed trials above which the exit status is 1.
        params: Search space: override key -> Hydra sweep, such as ``choice(1, 2)`` or ``interval(0.0, 1.0)``.
        methods: Further search space of each method, by the suffix of its experiments. The empty suffix fits all. If
            given, every experiment is a study of its own, with ``n_trials`` trials.
        cell: Experiment whose methods are searched. If None, ``experiment=`` names the experiments.
    """

    def __init__(
        self,
        sampler: DictConfig,
        direction: str,
        storage: str | None,
        study_name: str | None,
        n_trials: int,
        n_jobs: int,
        max_failure_rate: float,
        params: DictConfig | None,
        methods: DictConfig | None = None,
        cell: str | None = None,
    ):
        self.sampler, self.direction, self.storage, self.study_name = sampler, direction, storage, study_name
        self.n_trials, self.n_jobs, self.max_failure_rate = n_trials, n_jobs, max_failure_rate
        self.params, self.methods, self.cell = dict(params or {}), dict(methods or {}), cell
        self.space: dict[str, BaseDistribution] = {}
        self.fixed: list[str] = []

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the search; exit status 1 if it is refused or too many trials failed."""
        from et.utils.errors import exit_on_user_error

        if not exit_on_user_error(lambda: self.search(arguments)):
            raise SystemExit(1)

    def search(self, arguments: list[str]) -> bool:
        """Run the missing trials of the search, or of one search for each experiment of ``methods``.

        Returns:
            Whether in each some trial has a score and no more failed than ``max_failure_rate`` allows.

        Raises:
            UserError: The configuration cannot be searched, or the storage does not fit it.
        """
        from et.sweeps.cells import chosen_experiments

        check_search(self.config, self.direction, self.n_trials, self.n_jobs, self.max_failure_rate)
        folder = Path(self.config.hydra.sweep.dir)
        if not self.methods:
            return self.search_one(self.params, arguments, self.study_name, folder)
        others = [argument for argument in arguments if not argument.startswith("experiment=")]
        enough = []
        for name, method in chosen_experiments(arguments, self.methods, self.cell).items():
            params = {**self.params, **self.methods[method], "experiment": name}
            study_name = name if self.study_name is None else f"{self.study_name}_{name}"
            enough.append(self.search_one(params, others, study_name, folder / name))
        return all(enough)

    def search_one(
        self, params: Mapping[str, Any], arguments: Sequence[str], study_name: str | None, folder: Path
    ) -> bool:
        """Run the missing trials of one study and write optimization_results.yaml; whether enough succeeded."""
        from et.sweeps.report import say

        given = [*(f"{key}={value}" for key, value in params.items()), *arguments]
        self.space, self.fixed = read_overrides(given, self.hydra_context.config_loader)
        folder.mkdir(parents=True, exist_ok=True)
        study = self.open_study(study_name)
        waiting = left_running(study, self.space)
        while waiting or len(study.trials) < self.n_trials:
            count = min(self.n_jobs, len(waiting) + max(0, self.n_trials - len(study.trials)))
            batch = [waiting.pop(0) if waiting else self.propose(study) for _ in range(count)]
            jobs = [[*self.fixed, *(f"{key}={value}" for key, value in drawn.items())] for _, drawn in batch]
            for (number, drawn), done in zip(batch, self.launcher.launch(jobs, batch[0][0]), strict=True):
                value = score(done)
                if value is None:
                    study.tell(number, state=failed_state())
                else:
                    study.tell(number, value)
                outcome = "failed" if value is None else f"{self.config.callbacks.monitor} {value:.6g}"
                say(f"trial {number}: {outcome}  ({label(drawn)})")
        return self.finish(study, folder)

    def open_study(self, study_name: str | None) -> optuna.Study:
        """The study, new or from its storage.

        Raises:
            UserError: Optuna is not installed, or the storage cannot be opened.
        """
        from et.utils.errors import UserError, first_line

        try:
            import optuna
        except ImportError as error:
            raise UserError("hydra/sweeper=optuna needs Optuna: pip install 'energy-transformer[sweep]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.create_study(
                study_name=study_name, storage=self.storage, direction=self.direction, load_if_exists=True
            )
        except Exception as error:  # each database has its own errors
            raise UserError(
                f"hydra.sweeper.storage={self.storage} cannot be opened: {first_line(error)}. "
                "Give a URL such as sqlite:///search.db"
            ) from error
        if study.direction.name.lower() != self.direction:
            raise UserError(
                f"study {study.study_name} in {self.storage} was made with direction {study.direction.name.lower()}: "
                "choose another hydra.sweeper.study_name"
            )
        return study

    def propose(self, study: optuna.Study) -> tuple[int, dict[str, Any]]:
        """(number, values by key) of a new trial.

        Raises:
            UserError: The study searched other values of a key before.
        """
        import numpy as np

        from et.utils.errors import UserError, first_line

        options = dict(self.sampler)
        if options.get("seed") is not None:
            options["seed"] = int(np.random.SeedSequence((options["seed"], len(study.trials))).generate_state(1)[0])
        study.sampler = instantiate(options)
        try:
            trial = study.ask(self.space)
        except ValueError as error:
            raise UserError(
                f"study {study.study_name} in {self.storage} does not fit these values ({first_line(error)}): "
                "choose another hydra.sweeper.study_name"
            ) from error
        return trial.number, {key: trial.params[key] for key in self.space}

    def finish(self, study: optuna.Study, folder: Path) -> bool:
        """Report the search, write optimization_results.yaml; whether enough trials succeeded."""
        from et.sweeps.report import say

        trials = study.trials
        failed = [trial.number for trial in trials if trial.state.name == "FAIL"]
        complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
        say(f"search {study.study_name}: {len(complete)} trials finished, {len(failed)} failed")
        if failed:
            say(f"  failed: trials {', '.join(map(str, failed))}")
        if not complete:
            return False
        results = {"name": "optuna", "best_params": dict(study.best_params), "best_value": study.best_value}
        OmegaConf.save(OmegaConf.create(results), folder / "optimization_results.yaml")
        monitor = self.config.callbacks.monitor
        say(f"  best: trial {study.best_trial.number}, {monitor} {study.best_value:.6g}  ({label(study.best_params)})")
        return len(failed) <= self.max_failure_rate * len(trials)


def check_search(config: DictConfig, direction: str, n_trials: int, n_jobs: int, max_failure_rate: float) -> None:
    """Refuse a search before its first trial.

    Raises:
        UserError: No monitored metric, a direction against ``callbacks.mode``, or a number out of its range.
    """
    from et.utils.errors import UserError

    monitor, mode = config.callbacks.monitor, config.callbacks.mode
    if monitor is None:
        raise UserError("a search needs callbacks.monitor: the validation metric that trials are compared by")
    if direction not in ("minimize", "maximize"):
        raise UserError(f"hydra.sweeper.direction must be minimize or maximize, not {direction!r}")
    if direction[:3] != mode:
        raise UserError(f"hydra.sweeper.direction={direction} searches against callbacks.mode={mode} of {monitor}")
    for key, value in (("n_trials", n_trials), ("n_jobs", n_jobs)):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"hydra.sweeper.{key} must be at least 1, not {value}")
    if not 0 <= max_failure_rate <= 1:
        raise UserError(f"hydra.sweeper.max_failure_rate must be between 0 and 1, not {max_failure_rate}")


def read_overrides(given: Sequence[str], loader: Any = None) -> tuple[dict[str, BaseDistribution], list[str]]:
    """Search space and fixed overrides of a command line; the last override of a key counts.

    Args:
        given: Overrides, with sweeps as values where a key is to be searched.
        loader: Hydra's configuration loader, for ``glob`` sweeps.

    Raises:
        UserError: Nothing is to be searched.
    """
    from et.utils.errors import UserError

    last = {o.key_or_group: o for o in OverridesParser.create(config_loader=loader).parse_overrides(list(given))}
    space = {o.get_key_element(): distribution(o) for o in last.values() if o.is_sweep_override()}
    if not space:
        raise UserError("nothing to search: give hydra.sweeper.params, or a key as 'choice(1, 2)'")
    return space, [o.input_line for o in last.values() if not o.is_sweep_override()]


def distribution(override: Override) -> BaseDistribution:
    """Optuna's distribution for a Hydra sweep: ``choice``, ``glob``, ``range`` or ``interval`` (``tag(log, ...)``)."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if override.is_interval_sweep():
        kind = IntDistribution if isinstance(value.start, int) and isinstance(value.end, int) else FloatDistribution
        return kind(value.start, value.end, log="log" in value.tags)
    elements = list(override.sweep_iterator(transformer=Transformer.encode))
    if not isinstance(value, RangeSweep) or value.shuffle:
        return CategoricalDistribution(elements)
    kind = IntDistribution if all(isinstance(element, int) for element in elements) else FloatDistribution
    return kind(min(elements), max(elements), step=abs(value.step))


def left_running(study: optuna.Study, space: Mapping[str, BaseDistribution]) -> list[tuple[int, dict[str, Any]]]:
    """(number, values) of the trials that were running when a stored study was interrupted.

    Of one that was interrupted while its values were drawn nothing can be run: it is told as failed.
    """
    waiting = []
    for trial in study.trials:
        if trial.state.is_finished():
            continue
        if all(key in trial.params for key in space):
            waiting.append((trial.number, {key: trial.params[key] for key in space}))
        else:
            study.tell(trial.number, state=failed_state())
    return waiting


def score(done: JobReturn) -> float | None:
    """What a job returned, or None if it failed or returned no number."""
    try:
        value = float(done.return_value)
    except Exception:  # what the job raised, which it has told of itself
        return None
    return value if math.isfinite(value) else None


def failed_state() -> optuna.trial.TrialState:
    """Optuna's state of a failed trial."""
    from optuna.trial import TrialState

    return TrialState.FAIL


def label(drawn: Mapping[str, Any]) -> str:
    """Values of a trial as overrides."""
    return " ".join(f"{key}={value}" for key, value in drawn.items())
