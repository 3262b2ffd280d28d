"""From a configuration to a finished run: train(cfg) -> Outcome. Callable without a command line."""

from __future__ import annotations

import gc
import logging
import resource
import warnings
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.plugins.environments import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy

from et.runs.checkpoint_files import load_best
from et.runs.config_check import check_config
from et.runs.fingerprint import check_same_data
from et.runs.folder import SCORES, Start, find_start, locked, start_over
from et.runs.identity import resolve, with_counts
from et.runs.loading import family
from et.runs.record import (
    git_commit,
    machine,
    read_result,
    run_dir,
    run_id,
    uncommitted_changes,
    versions,
    write_result,
)
from et.training.callbacks import CentralizedGradients, Checkpoints, FiniteLoss, KeptScores, SeededEpochs, Stopwatch
from et.training.graceful_stop import StopOnSignal
from et.training.launcher import agreed, cluster_environment, local_processes, must_start_processes, run_processes
from et.training.loggers import extra_loggers, finish_loggers, log_outcome
from et.training.metrics_file import MetricsFile
from et.training.terminal import ProgressBar, TerminalLog
from et.training.trainer_options import ValidationComes, check_options, overfit_options, repeat_first_epoch
from et.utils.errors import UserError
from et.utils.files import write_atomically


@dataclass
class Outcome:
    """What :func:`train` returns.

    Attributes:
        record: content of result.json.
        folder: the run's folder.
        skipped: the run was finished already and nothing was done.
        task, data, trainer: what was trained; None where it was skipped, or ran in processes of its own.
    """

    record: dict[str, Any]
    folder: Path
    skipped: bool = False
    task: pl.LightningModule | None = None
    data: pl.LightningDataModule | None = None
    trainer: pl.Trainer | None = None


@dataclass
class Parts:
    """What a run is made of."""

    network: torch.nn.Module
    task: pl.LightningModule
    data: pl.LightningDataModule
    trainer: pl.Trainer
    checkpoints: Checkpoints
    kept_scores: KeptScores
    stopwatch: Stopwatch
    metrics_file: MetricsFile


def train(cfg: DictConfig) -> Outcome:
    """Train, test and record one run; resume it where it was interrupted; skip it where it is finished.

    Args:
        cfg: a composed configuration (conf/train.yaml).

    Raises:
        UserError: something in the configuration, the data or the machine that the user can mend.
        Interrupted: a signal stopped the run; the same call resumes it.
    """
    quiet_libraries()
    config = resolve(cfg)
    check_options(cfg.trainer)
    check_config(config)
    cfg = with_counts(cfg)
    check_epochs(cfg)
    check_checkpoint_choice(cfg)
    check_precision(cfg)
    identity = run_id(config)
    folder = run_dir(cfg.paths.runs, cfg.name, identity)
    finished = read_result(folder, identity)
    if finished is None and (folder / "result.json").exists():
        print(f"warning: {folder / 'result.json'} is damaged or of another run; it is not used")
    if finished is not None and not cfg.force:
        check_same_data(config, finished)
        return Outcome(finished, folder, skipped=True)
    if must_start_processes(cfg.trainer):
        return Outcome(run_processes(cfg), folder)
    parts = build(cfg, folder, identity)
    task, data, trainer = parts.task, parts.data, parts.trainer
    with ExitStack() as held:

        def take_folder() -> Start:
            held.enter_context(locked(folder))
            if cfg.force:
                start_over(folder)
            write_atomically(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
            return find_start(folder / "checkpoints", identity, needs_best=cfg.checkpoint == "best")

        start = agreed(trainer, take_folder)
        held.push(lambda kind, error, trace: finish_loggers(trainer.loggers, identity, error))
        reset_peak_memory(trainer.strategy.root_device)
        fit(trainer, task, data, start, parts.metrics_file)
        tested = test(cfg, trainer, task, data, parts.checkpoints)
        log_outcome(trainer.loggers, cfg, tested)
        record = describe_run(cfg, identity, parts, tested)
        if trainer.is_global_zero and not trainer.fast_dev_run:
            write_result(folder, record)
            parts.kept_scores.forget()
    if trainer.world_size > 1 and not TorchElasticEnvironment.detect():  # whose store serves one group only
        torch.distributed.destroy_process_group()  # the next cell of a sweep makes its own
    return Outcome(record, folder, task=task, data=data, trainer=trainer)


def build(cfg: DictConfig, folder: Path, identity: str) -> Parts:
    """Data, network, task and trainer of a run, with what keeps its state in ``folder``."""
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data, network = instantiate(cfg.data), build_network(cfg)
    task = instantiate(cfg.task, network=network, optim=cfg.optim)
    if cfg.trainer.get("overfit_batches"):
        repeat_first_epoch(data)
    checkpoints = Checkpoints(
        folder / "checkpoints",
        cfg.callbacks.monitor,
        cfg.callbacks.mode,
        cfg.callbacks.save_every_n_epochs,
        identity,
        cfg.callbacks.get("tie_break"),
    )
    stopwatch, metrics_file = Stopwatch(), MetricsFile(folder / "metrics.csv")
    kept_scores = KeptScores(folder / SCORES, identity)
    keepers = [checkpoints, kept_scores, stopwatch, StopOnSignal(checkpoints)]
    if cfg.checkpoint == "best":
        keepers.append(ValidationComes())
    trainer = build_trainer(cfg, folder, identity, network, keepers, metrics_file)
    return Parts(network, task, data, trainer, checkpoints, kept_scores, stopwatch, metrics_file)


def describe_run(cfg: DictConfig, identity: str, parts: Parts, tested: dict[str, float]) -> dict[str, Any]:
    """What result.json says of a run that has ended with the test metrics ``tested``."""
    trainer, checkpoints = parts.trainer, parts.checkpoints
    best = tests_best(cfg, checkpoints)
    validated = checkpoints.best_metrics if best else checkpoints.metrics_at(trainer.global_step)
    commit = git_commit()
    return {
        "experiment": cfg.name,
        "run_id": identity,
        "seed": cfg.seed,
        "fidelity": cfg.fidelity,
        "protocol": cfg.protocol,
        "task": family(cfg),
        "dataset": parts.data.describe(),
        "metrics": {**validated, **tested},
        "best_epoch": checkpoints.best_epoch,
        "num_params": sum(p.numel() for p in parts.network.parameters()),
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "seconds": round(parts.stopwatch.seconds, 2),
        "peak_memory_mb": peak_memory_mb(trainer.strategy.root_device),
        "device": device_name(trainer),
        "machine": machine(torch.get_num_threads()),
        "git_commit": commit,
        "uncommitted_changes": uncommitted_changes(commit),
        "versions": versions(),
    }


def fit(
    trainer: pl.Trainer, task: pl.LightningModule, data: pl.LightningDataModule, start: Start, metrics_file: MetricsFile
) -> None:
    """Train to the end from ``start`` on.

    Raises:
        Interrupted: a signal stopped the run; it can be resumed.
        UserError: a process of the data loader died.
    """
    metrics_file.forget_from(start.step)
    try:
        trainer.fit(task, data, ckpt_path=start.checkpoint, weights_only=True)
    except BaseException as error:
        with suppress(OSError, UserError):  # a full disk, which has been told of already
            metrics_file.save()
        if isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error):
            raise UserError(
                f"a process of the data loader died at step {trainer.global_step} (out of memory?). The last "
                "checkpoint is good: start the same command again to resume, with a smaller data.num_workers if it "
                "happens again"
            ) from error
        raise


def check_epochs(cfg: DictConfig) -> None:
    """Raise UserError unless ``trainer.max_epochs`` is a number of epochs."""
    epochs = cfg.trainer.max_epochs
    if not isinstance(epochs, int) or epochs < 0:
        raise UserError(
            f"trainer.max_epochs must be a number of epochs, not {epochs}: warm-up and schedule are counted in them. "
            "To end after trainer.max_steps, set it to as many epochs as these steps take"
        )


def check_checkpoint_choice(cfg: DictConfig) -> None:
    """Refuse, before any work, a choice of weights that cannot be tested at the end.

    Raises:
        UserError: ``checkpoint`` is ``best`` where no metric says what best means.
    """
    if cfg.checkpoint == "best" and cfg.callbacks.monitor is None:
        raise UserError("checkpoint=best needs callbacks.monitor: the metric that names the best epoch")
    if cfg.checkpoint == "best" and cfg.trainer.get("limit_val_batches") == 0:
        raise UserError(
            "checkpoint=best needs a validation, but trainer.limit_val_batches is 0: raise it, or set checkpoint=last"
        )
    every, epochs = cfg.trainer.get("check_val_every_n_epoch") or 1, cfg.trainer.max_epochs
    if cfg.checkpoint == "best" and epochs < every and not cfg.trainer.get("fast_dev_run"):
        raise UserError(
            f"checkpoint=best needs a validation, but trainer.check_val_every_n_epoch is {every} and "
            f"trainer.max_epochs {epochs}: lower the one, raise the other, or set checkpoint=last"
        )


def check_precision(cfg: DictConfig) -> None:
    """Refuse precisions whose conversion of weights or batches the task cannot take.

    Raises:
        UserError: another precision than single or mixed; for images double is one more.
    """
    precision, images = str(cfg.trainer.precision), family(cfg) == "inpainting"
    possible = ["32-true", "16-mixed", "bf16-mixed", *(["64-true"] if images else [])]
    if precision not in (*possible, "32", "16", "bf16", "None", *(["64"] if images else [])):
        raise UserError(f"trainer.precision must be {', '.join(possible)}, not {precision}")


def quiet_libraries() -> None:
    """Keep Lightning's notes on hardware and its advertisements off the screen; warnings about the run stay."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric.utilities.distributed").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.accelerators.cuda").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*Total length of `list` across ranks is zero.*")  # nothing validates
    warnings.filterwarnings("ignore", message=".*dataloader is not resumable.*")  # it is: et.training.graceful_stop
    warnings.filterwarnings("ignore", message=".*srun. command is available.*")
    # What the tasks log at the end of an epoch is over all processes already, and equal in each of them.
    warnings.filterwarnings("ignore", message=".*recommended to use .self.log.*sync_dist.*")


def build_network(cfg: DictConfig) -> torch.nn.Module:
    """The experiment's network with its initial weights, which depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        return instantiate(cfg.model)


def build_trainer(
    cfg: DictConfig,
    folder: Path,
    identity: str,
    network: torch.nn.Module,
    keepers: list[pl.Callback],
    metrics_file: MetricsFile,
) -> pl.Trainer:
    """The Lightning trainer with this project's callbacks and the loggers asked for."""
    compute_exactly()
    callbacks = [SeededEpochs(cfg.seed), FiniteLoss(), LearningRateMonitor("step"), *keepers]
    if cfg.optim.get("centralize_gradients"):
        callbacks.append(CentralizedGradients())
    progress = cfg.callbacks.progress and cfg.trainer.get("enable_progress_bar", True)
    if progress:
        about = f"{cfg.protocol} · {cfg.fidelity} · seed {cfg.seed}"
        log = TerminalLog(cfg.name, about, folder, cfg.callbacks.monitor, cfg.callbacks.mode)
        callbacks += [ProgressBar(leave=False), log]
    callbacks += [instantiate(callback, folder=folder) for callback in (cfg.callbacks.get("pictures") or {}).values()]
    return instantiate(
        cfg.trainer,
        accelerator=accelerator(cfg.trainer.accelerator),
        callbacks=callbacks,
        logger=[metrics_file, *extra_loggers(cfg, folder, identity)],
        default_root_dir=str(folder),
        enable_checkpointing=True,
        enable_progress_bar=bool(progress),
        **overfit_options(cfg.trainer),
        **distributed_options(cfg, network),
    )


def compute_exactly() -> None:
    """Let GPUs convolve in whole float32, as they multiply by default, and not in TF32.

    One convolution matters: where graphs are padded it makes ahat, which multiplies the scores of attention.
    """
    torch.backends.cudnn.allow_tf32 = False


def accelerator(choice: str) -> str:
    """What to compute on: ``auto`` is a GPU of CUDA or the CPU; Apple's GPUs have no float64, which metrics need."""
    return "cpu" if choice == "auto" and not torch.cuda.is_available() else choice


def distributed_options(cfg: DictConfig, network: torch.nn.Module) -> dict[str, Any]:
    """What the trainer needs so that several processes train as one would.

    Raises:
        UserError: the network's batch norms cannot be shared over processes on the CPU.
    """
    options: dict[str, Any] = {"plugins": [cluster_environment()]}
    if local_processes(cfg.trainer) * cfg.trainer.num_nodes == 1:
        return options
    if any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        if cfg.trainer.accelerator == "cpu" or not torch.cuda.is_available():
            raise UserError("batch norm over several processes needs GPUs: set trainer.devices=1")
        options["sync_batchnorm"] = True
    if cfg.trainer.strategy in ("auto", "ddp"):
        # Buffers are equal everywhere. Sending them at every forward pass would also count validation batches, of
        # which one process may have more than another.
        options["strategy"] = DDPStrategy(forward_sync_buffers=False)
    return options


def test(
    cfg: DictConfig, trainer: pl.Trainer, task: pl.LightningModule, data: pl.LightningDataModule, kept: Checkpoints
) -> dict[str, float]:
    """The test metrics, read once, with the weights that ``checkpoint`` names.

    A protocol without validation data (the released one for graphs) has no best epoch: the last one's are tested.

    Raises:
        UserError: the best epoch's weights are lost.
    """
    best = tests_best(cfg, kept) and not trainer.fast_dev_run
    if cfg.checkpoint == "best" and kept.best_epoch is None and not trainer.fast_dev_run and data.val_dataloader():
        warnings.warn("training ended before its first validation: the last weights are tested", stacklevel=2)
    if best:
        try:
            load_best(kept.folder, kept.identity, kept.best_epoch, kept.best_step)
        except UserError as error:
            # Without a cause: every process of a distributed run raises this alike.
            raise UserError(f"{error}. Start the same command again: it trains anew what is lost") from None
    # After fit the weights in memory are those of last.ckpt: no file need be read for them.
    trainer.test(task, data, ckpt_path=kept.folder / "best.ckpt" if best else None, weights_only=True, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test/")}


def tests_best(cfg: DictConfig, kept: Checkpoints) -> bool:
    """Whether the best epoch's weights are the ones to test, and not the last one's."""
    return cfg.checkpoint == "best" and kept.best_epoch is not None


def reset_peak_memory(device: torch.device) -> None:
    """Start the kernel's and CUDA's peak counters anew, so that a sweep in one process measures each run."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        gc.collect()  # what the run before left in circles of references
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MB: of the GPU if the run was on one, else of this process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    try:
        status = Path("/proc/self/status").read_text()
        return round(int(status.split("VmHWM:")[1].split()[0]) / 1024, 1)
    except (OSError, IndexError):
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def device_name(trainer: pl.Trainer) -> str:
    """What the run was computed on, for example "2 x NVIDIA A100" or "cpu (2 threads)"."""
    if trainer.strategy.root_device.type == "cuda":
        return f"{trainer.world_size} x {torch.cuda.get_device_name()}"
    processes = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    return f"{processes}{trainer.strategy.root_device.type} ({torch.get_num_threads()} threads)"
