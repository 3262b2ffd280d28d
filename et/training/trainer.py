"""Lightning's Trainer as runs and evaluations use it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy

from et.training.callbacks import CentralizedGradients, FiniteLoss, SeededEpochs
from et.training.device import accelerator, compute_exactly
from et.training.launcher import cluster_environment, local_processes
from et.training.terminal import ProgressBar, TerminalLog
from et.training.trainer_options import overfit_options
from et.utils.errors import UserError


def build_trainer(
    cfg: DictConfig, folder: Path, network: torch.nn.Module, keepers: list[pl.Callback], loggers: list[Logger]
) -> pl.Trainer:
    """The trainer of a run.

    Args:
        cfg: Resolved configuration.
        folder: Folder of the run.
        network: What is trained.
        keepers: Callbacks that keep the state of the run.
        loggers: Loggers of the run.
    """
    compute_exactly()
    # Deterministic algorithms fill uninitialised memory by default: a pass over every tensor of every step.
    torch.utils.deterministic.fill_uninitialized_memory = False
    # The user's callbacks come before those that keep the run's state: averaged weights are of the step that is saved.
    own = [build_callback(node) for node in callback_nodes(cfg.callbacks)]
    callbacks = [SeededEpochs(cfg.seed), FiniteLoss(), LearningRateMonitor("step"), *own, *keepers]
    if cfg.optim.get("centralize_gradients"):
        callbacks.append(CentralizedGradients())
    progress = bool(cfg.callbacks.progress and cfg.trainer.get("enable_progress_bar", True))
    if progress:
        about = f"{cfg.protocol} · {cfg.fidelity} · seed {cfg.seed}"
        monitor, mode = cfg.callbacks.monitor, cfg.callbacks.mode
        callbacks += [ProgressBar(leave=False), TerminalLog(cfg.name, about, folder, monitor, mode, cfg.protocol)]
    return instantiate(
        cfg.trainer,
        accelerator=accelerator(cfg.trainer.accelerator),
        callbacks=callbacks,
        logger=loggers,
        default_root_dir=str(folder),
        enable_checkpointing=True,
        enable_progress_bar=progress,
        **overfit_options(cfg.trainer),
        **distributed_options(cfg, network),
    )


def build_tester(cfg: DictConfig, device: str, progress: bool, *callbacks: pl.Callback) -> pl.Trainer:
    """A trainer that only scores, and by itself writes nothing."""
    compute_exactly()
    return pl.Trainer(
        accelerator=accelerator(device), devices=1, logger=False, enable_progress_bar=progress,
        precision=cfg.trainer.precision, enable_checkpointing=False, enable_model_summary=False,
        callbacks=list(callbacks),
    )  # fmt: skip


def build_callback(node: DictConfig) -> pl.Callback:
    """The callback that a section names.

    Raises:
        UserError: it names something else.
    """
    callback = instantiate(node)
    if not isinstance(callback, pl.Callback):
        raise UserError(f"callbacks: {node._target_} is not a Lightning callback (pytorch_lightning.Callback)")
    return callback


def callback_nodes(section: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The classes to instantiate in the section ``callbacks`` and in the sections in it."""
    for value in section.values():
        if isinstance(value, Mapping | DictConfig):
            yield from [value] if "_target_" in value else callback_nodes(value)


def distributed_options(cfg: DictConfig, network: torch.nn.Module) -> dict[str, Any]:
    """What the trainer needs so that several processes train as one would.

    Raises:
        UserError: The network's batch norms cannot be shared over processes on the CPU.
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


def quiet_libraries() -> None:
    """Keep the libraries' notes and advertisements off the screen; warnings about the run stay."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric.utilities.distributed").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.accelerators.cuda").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*torch.jit.script. is deprecated.*")  # by importing torch_geometric
    warnings.filterwarnings("ignore", message="Sparse (CSR tensor support is in beta|invariant checks are)")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*Total length of `list` across ranks is zero.*")  # nothing validates
    warnings.filterwarnings("ignore", message=".*dataloader is not resumable.*")  # it is: et.training.graceful_stop
    warnings.filterwarnings("ignore", message=".*srun. command is available.*")
    # What the tasks log at the end of an epoch is over all processes already, and equal in each of them.
    warnings.filterwarnings("ignore", message=".*recommended to use .self.log.*sync_dist.*")
