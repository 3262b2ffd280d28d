"""Sweeps: python train.py --multirun sweep=table01 runs the missing cells of a table and continues after failures.

A sweep file (conf/sweep/) lists values of experiment, seed, fold and protocol. Their product, without the combinations
that ``sweep.skip`` matches, gives the table's cells. The state of a cell is read from its run folder, so any process or
Slurm job may have run it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from et.runs.fingerprint import of_user_data
from et.runs.identity import check_overrides, resolve
from et.runs.record import forced, plain_name, read_result, run_dir, run_id
from et.sweeps.cells import Cell, combinations, inspect_all, jobs, label_of, needed, record_failure, skipped
from et.sweeps.report import missing_data, report, say
from et.utils.errors import UserError, first_line, unwrapped, user_message
from et.utils.paths import command
from et.utils.startup import drop_output


def run_cell(cfg: DictConfig) -> float | None:
    """Run one cell of a sweep. A failure is written to failure.json in its folder and the sweep continues.

    Returns:
        The metric that the experiment monitors; None if there is none or the run failed.

    Raises:
        UserError: Hydra was started without --multirun.
    """
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        raise UserError(f"a sweep runs with --multirun: {command('train')} --multirun sweep={cfg.sweep.name}")
    overrides = list(HydraConfig.get().overrides.task)
    if skipped(overrides, cfg.sweep.skip):
        return None
    config = resolve(cfg)
    identity = run_id(config)
    folder = run_dir(cfg.paths.runs, cfg.name, identity)
    finished = read_result(folder, identity)
    if finished is not None and not forced(cfg.force, folder) and not of_user_data(finished):
        return _monitored(cfg, finished)
    say(f"-- {label_of(overrides)}")
    (folder / "failure.json").unlink(missing_ok=True)
    try:
        from et.training.run import train

        check_overrides(overrides, config)
        outcome = train(cfg)  # which looks whether a user's own data are still those of the finished run
    except Exception as error:
        error = unwrapped(error)
        record_failure(folder, error, overrides)
        say(f"   failed: {_named(error)}")
        end_if_told_to(error)
        end_if_others_wait(error)
        return None
    if not outcome.skipped:
        say(f"   {outcome.record['seconds']:.0f} s, {folder}")
    return _monitored(cfg, outcome.record)


def run_job(cfg: DictConfig, run: Callable[[], float | None]) -> float | None:
    """Run one job of a multirun without a sweep file. A failure is printed and written to failure.json; other jobs
    continue.

    Args:
        cfg: Configuration of the job.
        run: Function that trains it.

    Returns:
        Result of ``run``, or None if it failed.
    """
    overrides, folder = list(HydraConfig.get().overrides.task), None
    try:
        config = resolve(cfg)
        folder = run_dir(cfg.paths.runs, cfg.name, run_id(config))
        (folder / "failure.json").unlink(missing_ok=True)
        return run()
    except Exception as error:
        message = user_message(error)
        if message is None:
            traceback.print_exception(error)
            message = _named(unwrapped(error))
        print(f"error: {label_of(overrides)}: {message}", file=sys.stderr, flush=True)
        if folder is not None:
            record_failure(folder, unwrapped(error), overrides)
        end_if_told_to(error)
        end_if_others_wait(error)
        return None


def end_if_told_to(error: Exception) -> None:
    """End the sweep if a signal had told the failed run to stop."""
    if getattr(error, "stopped_by", None) is not None:
        raise SystemExit(1)


def end_if_others_wait(error: Exception) -> None:
    """End this process at once if it is one of several of a run and may be the only one that failed.

    The others would wait for it forever and be out of step in the next cell. Their launcher ends them when one process
    fails. Errors that all processes raise alike are UserErrors without a cause.
    """
    from et.training.launcher import one_of_several

    if one_of_several() and not (isinstance(error, UserError) and error.__cause__ is None):
        sys.stdout.flush()
        os._exit(1)  # an ordinary exit would wait for the others


def plan(config: DictConfig) -> list[Cell]:
    """Every cell of the sweep with its state, read from the run folders."""
    return inspect_all(jobs(config, config.hydra.overrides.task))


class SweepCallback(Callback):
    """Hydra callback of the sweep files: prints the plan before the first job and a report after the last."""

    def __init__(self) -> None:
        self.cells: list[Cell] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the plan and remove finished cells; exit for a dry run or if no cell remains."""
        # Hydra turns exceptions of callbacks into warnings, which would start the sweep without its plan.
        try:
            self._start(config)
        except BrokenPipeError as error:
            raise SystemExit(drop_output(error)) from error
        except Exception as error:
            if not isinstance(error, UserError):
                traceback.print_exc()
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(1) from error

    def _start(self, config: DictConfig) -> None:
        title, runs = f"sweep {plain_name(config.sweep.name, 'sweep.name')}", Path(config.paths.runs)
        self.cells = plan(config)
        if not self.cells:
            raise UserError(f"{title} has no such run: its sweep.skip leaves out every combination that was asked for")
        report(self.cells, title, runs, verbose=config.sweep.dry_run)
        if config.sweep.dry_run:
            absent = missing_data(self.cells)
            for message, experiments in absent.items():
                say(f"  missing data: {message}\n      needed by {', '.join(experiments)}")
            raise SystemExit(int(any(cell.state == "invalid" or cell.refused for cell in self.cells)))
        if not config.force:
            values = needed(self.cells)
            if not values:
                raise SystemExit(int(any(cell.state not in ("done", "queued") for cell in self.cells)))
            config.hydra.sweeper.params = {key: values[key] for key in config.hydra.sweeper.params}
            given = [override.split("=", 1)[0] for override in config.hydra.overrides.task]
            config.hydra.overrides.task = [f"{key}={values[key]}" for key in given]

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the report; exit with status 0 if every cell is finished."""
        self.cells = inspect_all(cell.overrides for cell in self.cells)
        say("")
        report(self.cells, f"sweep {config.sweep.name}", Path(config.paths.runs), verbose=False)
        if config.sweep.detach and any(cell.state == "queued" for cell in self.cells):
            return
        if any(cell.state != "done" for cell in self.cells):
            say("  the same command runs what is not finished")
            raise SystemExit(1)


class MultirunCallback(Callback):
    """Hydra callback of multiruns without a sweep file: the exit status is 0 if every job finished.

    Searches report themselves, since their jobs are not known in advance.
    """

    def __init__(self) -> None:
        self.jobs: list[list[str]] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Record the planned jobs."""
        if config.get("sweep") is None and config.hydra.sweeper._target_.endswith("BasicSweeper"):
            with suppress(HydraException):  # which the sweeper is about to raise, too
                self.jobs = combinations(config.hydra.sweeper.params or {}, config.hydra.overrides.task)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Report the failed jobs and exit with status 1 if there are any."""
        cells = inspect_all(self.jobs)
        if any(cell.state in ("failed", "invalid") for cell in cells):
            report(cells, "multirun", Path(config.paths.runs), verbose=False)
            raise SystemExit(1)


class FailedJobs(Callback):
    """Hydra callback of evaluate.py: a failed job does not end a multirun but sets its exit status."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Record a failed job, whose error is already printed, and continue."""
        if config.hydra.mode == RunMode.MULTIRUN and job_return.status == JobStatus.FAILED:
            self.failed.append(" ".join(job_return.overrides or ()))
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the failed jobs and exit with status 1 if there are any."""
        if self.failed:
            print(f"error: {len(self.failed)} jobs failed: {'; '.join(self.failed)}", file=sys.stderr)
            raise SystemExit(1)


def _monitored(cfg: DictConfig, record: Mapping[str, Any]) -> float | None:
    return record["metrics"].get(cfg.callbacks.monitor)


def _named(error: Exception) -> str:
    """Class and first line of an error."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"
