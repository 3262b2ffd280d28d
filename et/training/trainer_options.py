"""Checks of a configuration before any work, and options of the Trainer that need more than to be handed on."""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from hydra.utils import get_class

from et.core.arguments import check_given
from et.runs.config_check import check_config
from et.training.sampler import EpochSampler
from et.training.task import Task
from et.utils.errors import UserError

# What a run sets itself, and where a person says it instead.
OWNED = {
    "callbacks": "callbacks stand in the configuration group callbacks: +callbacks.NAME={_target_: CLASS, ...}",
    "logger": "choose logger=tensorboard, logger=wandb or logger=[tensorboard,wandb]; metrics.csv is always kept",
    "enable_checkpointing": "checkpoints are always kept, to resume from; see callbacks.save_every_n_epochs",
    "default_root_dir": "a run writes into its folder below paths.runs",
    "plugins": "trainer.precision, trainer.strategy and the launcher choose them",
    "sync_batchnorm": "it is on wherever several processes share a network with batch norm",
}


def check_run(config: Mapping[str, Any]) -> type[Task]:
    """Refuse, before any work, a configuration that cannot be trained, tested and recorded as it says.

    Args:
        config: A resolved configuration.

    Returns:
        The class of its task.

    Raises:
        UserError: An unknown key, or a value that cannot work.
    """
    check_options(config["trainer"])
    check_config(config)
    check_numbers(config)
    check_epochs(config["trainer"])
    check_checkpoint_choice(config)
    task = get_class(config["task"]["_target_"])
    if not issubclass(task, Task):
        raise UserError(f"task._target_={config['task']['_target_']} must derive from et.training.task.Task")
    if config["protocol"] not in task.protocols:
        others = " or ".join(task.protocols)
        raise UserError(f"{task.__name__} has no protocol={config['protocol']}: set protocol={others}")
    check_precision(config["trainer"], task)
    check_monitored(config["callbacks"], task)
    return task


def check_options(trainer: Mapping[str, Any]) -> None:
    """Refuse options that would have no effect, or break the order of the samples.

    Args:
        trainer: The section ``trainer`` of a configuration.

    Raises:
        UserError: An option that a run sets itself, or one with a value that cannot work here.
    """
    for key, instead in OWNED.items():
        if key in trainer:
            raise UserError(f"trainer.{key} cannot be set: {instead}")
    if trainer.get("use_distributed_sampler"):
        raise UserError("trainer.use_distributed_sampler must be false: et.training.sampler shares the samples out")
    for key in ("overfit_batches", "limit_train_batches", "limit_val_batches", "limit_test_batches"):
        value = trainer.get(key)
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or value < 0 or (isinstance(value, float) and value > 1):
            raise UserError(f"trainer.{key} must be a number of batches, or a share between 0.0 and 1.0, not {value}")


def check_numbers(config: Mapping[str, Any]) -> None:
    """Raise UserError for a number outside the range in which it means something.

    Sizes of data, model and task are checked by their constructors.
    """
    seed, trainer = config["seed"], config["trainer"]
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise UserError(f"seed must be a whole number between 0 and {2**32 - 1}, not {seed!r}")
    for name, value in (
        ("optim.clip_norm", config["optim"].get("clip_norm")),
        ("trainer.gradient_clip_val", trainer.get("gradient_clip_val")),
    ):
        if value is not None and not (isinstance(value, int | float) and value > 0):
            raise UserError(f"{name} must be above 0, or null for no clipping, not {value!r}")
    names = ("accumulate_grad_batches", "check_val_every_n_epoch", "num_nodes")
    sizes = {f"trainer.{name}": trainer.get(name) for name in names}
    for name in ("save_every_n_epochs", "patience"):
        sizes[f"callbacks.{name}"] = config["callbacks"].get(name)
    rates = {f"optim.schedule.{key}": value for key, value in config["optim"]["schedule"].items() if key != "name"}
    rates |= {f"optim.optimizer.{key}": value for key, value in config["optim"]["optimizer"].items() if key == "lr"}
    rates |= {f"model.{key}": value for key, value in config["model"].items() if key == "step_size"}
    for name, value in rates.items():
        least = "above 0" if name.endswith(".lr") else "at least 0"
        if not isinstance(value, int | float) or value < 0 or (value == 0 and least == "above 0"):
            raise UserError(f"{name} must be {least}, not {value!r}")
    try:
        check_given(**sizes)
        check_given(minimum=0, **{"trainer.log_every_n_steps": trainer.get("log_every_n_steps")})
        check_given(minimum=-1, **{"trainer.max_steps": trainer.get("max_steps")})
    except ValueError as error:
        raise UserError(str(error)) from error
    if isinstance(trainer["devices"], int) and (trainer["devices"] < -1 or trainer["devices"] == 0):
        raise UserError(f"trainer.devices must be a number of devices, or -1 for all, not {trainer['devices']}")
    if trainer.get("val_check_interval") == 0:
        raise UserError("trainer.val_check_interval must be above 0: a number of batches, or a share of an epoch")


def check_epochs(trainer: Mapping[str, Any]) -> None:
    """Raise UserError unless ``max_epochs`` is a number of epochs."""
    epochs = trainer.get("max_epochs")
    if not isinstance(epochs, int) or epochs < 0:
        raise UserError(
            f"trainer.max_epochs must be a number of epochs, not {epochs}: warm-up and schedule are counted in them. "
            "To end after trainer.max_steps, set it to as many epochs as these steps take"
        )


def check_checkpoint_choice(config: Mapping[str, Any]) -> None:
    """Refuse a choice of weights that cannot be tested at the end.

    Raises:
        UserError: ``checkpoint`` is ``best``, but no metric says what best means, or nothing is validated.
    """
    if config["checkpoint"] != "best":
        return
    trainer = config["trainer"]
    if config["callbacks"]["monitor"] is None:
        raise UserError("checkpoint=best needs callbacks.monitor: the metric that names the best epoch")
    if trainer.get("limit_val_batches") == 0:
        raise UserError(
            "checkpoint=best needs a validation, but trainer.limit_val_batches is 0: raise it, or set checkpoint=last"
        )
    every, epochs = trainer.get("check_val_every_n_epoch") or 1, trainer["max_epochs"]
    if epochs < every and not trainer.get("fast_dev_run"):
        raise UserError(
            f"checkpoint=best needs a validation, but trainer.check_val_every_n_epoch is {every} and "
            f"trainer.max_epochs {epochs}: lower the one, raise the other, or set checkpoint=last"
        )


def check_monitored(section: Mapping[str, Any], task: type[Task]) -> None:
    """Raise UserError for a metric to watch that the task's validation does not log."""
    for key in ("monitor", "tie_break"):
        name, known = section.get(key), task.validation_metrics
        if name is not None and known and name not in known:
            close = difflib.get_close_matches(str(name), known, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"callbacks.{key} is {name!r}, but validation logs {', '.join(known)}{hint}")


def check_precision(trainer: Mapping[str, Any], task: type[Task]) -> None:
    """Raise UserError for a precision whose conversion of weights or batches the task cannot take."""
    short = [name.split("-")[0] for name in task.precisions]
    if str(trainer.get("precision")) not in (*task.precisions, *short, "None"):
        raise UserError(f"trainer.precision must be {', '.join(task.precisions)}, not {trainer.get('precision')}")


def overfit_options(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Trainer arguments that stand for ``overfit_batches``: Lightning would replace the samplers of this project."""
    batches = trainer.get("overfit_batches")
    if not batches:
        return {}
    return {"overfit_batches": 0.0, "limit_train_batches": batches, "limit_val_batches": batches}


def repeat_first_epoch(data: pl.LightningDataModule) -> None:
    """Let every training epoch have the samples of the first, in the same order and equally augmented."""
    original = data.train_dataloader

    @functools.wraps(original)
    def train_dataloader() -> Any:
        loader = original()
        if isinstance(loader.sampler, EpochSampler):
            loader.sampler.repeat = True
        return loader

    data.train_dataloader = train_dataloader


class RequireValidation(pl.Callback):
    """Refuses, before the first step, a training that ends ahead of its first validation.

    For ``checkpoint=best``. Data without validation samples, as under the released protocol for graphs, pass: their
    last epoch is tested.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.fast_dev_run or not trainer.enable_validation or not trainer.val_dataloaders:
            return
        first, last = batches_before_validation(trainer), batches_of_training(trainer)
        if last < first:
            raise UserError(
                f"checkpoint=best needs a validation, but training ends after {last} batches and the first validation "
                f"comes after {first}: raise trainer.max_steps or trainer.max_epochs, validate earlier "
                "(trainer.val_check_interval), or set checkpoint=last"
            )


def batches_before_validation(trainer: pl.Trainer) -> float:
    """Training batches up to the first validation; infinity if there is none."""
    an_epoch, interval = trainer.num_training_batches, trainer.val_check_batch
    if trainer.check_val_every_n_epoch is None:
        return interval
    return (trainer.check_val_every_n_epoch - 1) * an_epoch + min(interval, an_epoch)


def batches_of_training(trainer: pl.Trainer) -> float:
    """Training batches that ``max_epochs`` and ``max_steps`` allow."""
    an_epoch, accumulated = trainer.num_training_batches, trainer.accumulate_grad_batches
    batches = trainer.max_epochs * an_epoch
    if trainer.max_steps < 0 or not math.isfinite(an_epoch):
        return batches
    epochs, steps = divmod(trainer.max_steps, math.ceil(an_epoch / accumulated))
    return min(batches, epochs * an_epoch + min(an_epoch, steps * accumulated))
