"""From a configuration to a finished run: train(cfg) -> Outcome. Callable without a command line."""

from __future__ import annotations

import warnings
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.plugins.environments import TorchElasticEnvironment

from et.runs.checkpoint_files import load_best
from et.runs.fingerprint import check_same_data
from et.runs.folder import SCORES, ResumePoint, find_resume_point, locked, settle, start_over
from et.runs.identity import resolve
from et.runs.record import (
    forced,
    machine,
    read_result,
    run_dir,
    run_id,
    uncommitted_changes,
    versions,
    write_result,
)
from et.training.callbacks import Checkpoints, KeptScores, StoppingEarly, Stopwatch
from et.training.device import device_name, peak_memory_mb, reset_peak_memory
from et.training.graceful_stop import StopOnSignal
from et.training.launcher import broadcast_from_rank_zero, must_start_processes, run_processes
from et.training.loggers import RunInfo, build_loggers, finish_loggers, log_outcome
from et.training.metrics_file import MetricsFile
from et.training.run_log import command_overrides, logged
from et.training.task import Task
from et.training.trainer import build_trainer, quiet_libraries
from et.training.trainer_options import RequireValidation, check_run, repeat_first_epoch
from et.utils.errors import UserError, loader_died, raise_user_errors
from et.utils.files import write_atomically


@dataclass
class Outcome:
    """What :func:`train` returns.

    Attributes:
        record: Content of result.json.
        folder: The run's folder.
        skipped: The run was finished already and nothing was done.
        task, data, trainer: What was trained. None if the run was skipped or had processes of its own.
    """

    record: dict[str, Any]
    folder: Path
    skipped: bool = False
    task: Task | None = None
    data: pl.LightningDataModule | None = None
    trainer: pl.Trainer | None = None


@dataclass
class Parts:
    """What a run is made of."""

    task: Task
    data: pl.LightningDataModule
    trainer: pl.Trainer
    checkpoints: Checkpoints
    kept_scores: KeptScores
    stopwatch: Stopwatch
    metrics_file: MetricsFile


def train(cfg: DictConfig) -> Outcome:
    """Train, test and record one run; resume it where it was interrupted; skip it where it is finished.

    Args:
        cfg: A composed configuration (conf/train.yaml). It is resolved once, here; everything below only reads it.

    Raises:
        UserError: Something in the configuration, the data or the machine that the user can mend.
        Interrupted: A signal stopped the run; the same call resumes it.
    """
    quiet_libraries()
    config = resolve(cfg)
    check_run(config)
    cfg = OmegaConf.create(config, flags={"readonly": True})
    run = RunInfo(cfg, run_dir(cfg.paths.runs, cfg.name, run_id(config)), run_id(config))
    settle(run.folder)
    finished = read_result(run.folder, run.identity)
    if finished is None and (run.folder / "result.json").exists():
        print(f"warning: {run.folder / 'result.json'} is damaged or of another run; it is not used")
    if finished is not None and not forced(cfg.force, run.folder):
        check_same_data(config, finished)
        return Outcome(finished, run.folder, skipped=True)
    if must_start_processes(cfg.trainer):
        return Outcome(run_processes(cfg), run.folder)
    parts = build(run)
    task, data, trainer = parts.task, parts.data, parts.trainer
    with ExitStack() as held:
        start = broadcast_from_rank_zero(trainer, lambda: take_folder(run, held))
        held.push(lambda kind, error, trace: finish_loggers(trainer.loggers, run.identity, error))
        reset_peak_memory(trainer.strategy.root_device)
        fit(trainer, task, data, start, parts.metrics_file)
        tested = test(cfg, trainer, task, data, parts.checkpoints)
        log_outcome(trainer.loggers, run, tested)
        record = describe_run(run, parts, tested)
        if trainer.is_global_zero and not trainer.fast_dev_run:
            write_result(run.folder, record)
            parts.kept_scores.forget()
    if trainer.world_size > 1 and not TorchElasticEnvironment.detect():  # whose store serves one group only
        torch.distributed.destroy_process_group()  # the next cell of a sweep makes its own
    return Outcome(record, run.folder, task=task, data=data, trainer=trainer)


def take_folder(run: RunInfo, held: ExitStack) -> ResumePoint:
    """Lock the run's folder until ``held`` is left, write down what is about to run, and find where it resumes."""
    held.enter_context(locked(run.folder))
    if forced(run.cfg.force, run.folder):
        start_over(run.folder)
    write_atomically(run.folder / "config.yaml", OmegaConf.to_yaml(run.cfg))
    write_atomically(run.folder / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(command_overrides())))
    start = find_resume_point(run.folder / "checkpoints", run.identity, needs_best=run.cfg.checkpoint == "best")
    held.enter_context(logged(run.folder / "run.log", f"run {run.identity} of {run.cfg.name} from step {start.step}"))
    return start


def build(run: RunInfo) -> Parts:
    """Data, network, task and trainer of a run, with what keeps its state in its folder."""
    cfg, folder = run.cfg, run.folder
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data, network = instantiate(cfg.data), build_network(cfg)
    task = instantiate(cfg.task, network=network, optim=cfg.optim)
    if cfg.trainer.get("overfit_batches"):
        repeat_first_epoch(data)
    kept = cfg.callbacks
    checkpoints = Checkpoints(
        folder / "checkpoints", kept.monitor, kept.mode, kept.save_every_n_epochs, run.identity, kept.get("tie_break")
    )
    stopwatch, metrics_file = Stopwatch(), MetricsFile(folder / "metrics.csv")
    kept_scores = KeptScores(folder / SCORES, run.identity)
    keepers = [checkpoints, kept_scores, stopwatch]
    if cfg.callbacks.get("patience") is not None:
        keepers.append(early_stopping(cfg.callbacks))  # which counts an epoch before a signal saves it
    keepers.append(StopOnSignal(checkpoints))
    if cfg.checkpoint == "best":
        keepers.append(RequireValidation())
    trainer = build_trainer(cfg, folder, network, keepers, [metrics_file, *build_loggers(run)])
    return Parts(task, data, trainer, checkpoints, kept_scores, stopwatch, metrics_file)


def early_stopping(section: DictConfig) -> StoppingEarly:
    """The callback that stops a run after ``callbacks.patience`` validations without a better value.

    Raises:
        UserError: There is no metric to watch.
    """
    if section.monitor is None:
        raise UserError("callbacks.patience needs a metric to watch: set callbacks.monitor")
    return StoppingEarly(section.monitor, mode=section.mode, patience=section.patience)


def describe_run(run: RunInfo, parts: Parts, tested: dict[str, float]) -> dict[str, Any]:
    """What result.json says of a run that has ended with the test metrics ``tested``."""
    cfg, trainer, checkpoints = run.cfg, parts.trainer, parts.checkpoints
    best = tests_best(cfg, checkpoints)
    validated = checkpoints.best_metrics if best else checkpoints.metrics_at(trainer.global_step)
    return {
        "experiment": cfg.name,
        "run_id": run.identity,
        "seed": cfg.seed,
        "fidelity": cfg.fidelity,
        "protocol": cfg.protocol,
        "task": parts.task.family,
        "dataset": parts.data.describe(),
        "metrics": {**validated, **tested},
        "best_epoch": checkpoints.best_epoch,
        "num_params": sum(p.numel() for p in parts.task.network.parameters()),
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "seconds": round(parts.stopwatch.seconds, 2),
        "peak_memory_mb": peak_memory_mb(trainer.strategy.root_device),
        "device": device_name(trainer),
        "machine": machine(torch.get_num_threads()),
        "git_commit": run.commit,
        "uncommitted_changes": uncommitted_changes(run.commit),
        "versions": versions(),
    }


def build_network(cfg: DictConfig) -> torch.nn.Module:
    """The experiment's network with its initial weights, which depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        return instantiate(cfg.model)


def fit(
    trainer: pl.Trainer, task: Task, data: pl.LightningDataModule, start: ResumePoint, metrics_file: MetricsFile
) -> None:
    """Train to the end from ``start`` on.

    Raises:
        Interrupted: A signal stopped the run; it can be resumed.
        UserError: A process of the data loader died, or an epoch has fewer batches than ``val_check_interval``.
    """
    metrics_file.forget_from(start.step)
    try:
        trainer.fit(task, data, ckpt_path=start.checkpoint, weights_only=True)
    except BaseException as error:
        with suppress(OSError, UserError):  # a full disk, which has been told of already
            metrics_file.save()
        if loader_died(error):
            raise UserError(
                f"a process of the data loader died at step {trainer.global_step} (out of memory?). The last "
                "checkpoint is good: start the same command again to resume, with a smaller data.num_workers if it "
                "happens again"
            ) from error
        if isinstance(error, ValueError) and str(error).lstrip().startswith("`val_check_interval`"):
            raise UserError(f"Lightning refuses this configuration: {str(error).strip()}") from error
        raise


def test(
    cfg: DictConfig, trainer: pl.Trainer, task: Task, data: pl.LightningDataModule, kept: Checkpoints
) -> dict[str, float]:
    """The test metrics, read once, with the weights that ``checkpoint`` names.

    A protocol without validation data (the released one for graphs) has no best epoch: the last one's are tested.

    Raises:
        UserError: The best epoch's weights are lost, or a process of the data loader died.
    """
    best = tests_best(cfg, kept) and not trainer.fast_dev_run
    if cfg.checkpoint == "best" and kept.best_epoch is None and not trainer.fast_dev_run and data.val_dataloader():
        warnings.warn("training ended before its first validation: the last weights are tested", stacklevel=2)
    if best:
        try:
            load_best(kept.folder, kept.identity, kept.best_epoch, kept.best_step)
        except UserError as error:
            # Without a cause: every process of a distributed run raises this alike.
            raise UserError(f"{error}. Start the same command again: it trains the lost epochs again") from None
    # After fit the weights in memory are those of last.ckpt: no file need be read for them.
    chosen = kept.folder / "best.ckpt" if best else None
    with raise_user_errors():
        trainer.test(task, data, ckpt_path=chosen, weights_only=True, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test/")}


def tests_best(cfg: DictConfig, kept: Checkpoints) -> bool:
    """Whether the best epoch's weights are the ones to test, and not the last one's."""
    return cfg.checkpoint == "best" and kept.best_epoch is not None
