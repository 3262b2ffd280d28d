"""Optimizers and learning-rate schedules of the paper (tables 4, 9 and 10)."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from et.utils.errors import UserError, key_advice


def warmup_cosine(step: int, total: int, warmup: int, peak_lr: float, start_lr: float, end_lr: float) -> float:
    """Learning rate at ``step`` (0-based): linear from start_lr to peak_lr, then a half cosine down to end_lr."""
    if step < warmup:
        return start_lr + (peak_lr - start_lr) * step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return end_lr + 0.5 * (peak_lr - end_lr) * (1 + math.cos(math.pi * progress))


def centralize(gradient: Tensor, axes: tuple[int, ...] | None = None) -> None:
    """Take a gradient's mean over ``axes`` off it, in place (gradient centralisation, Yong et al. 2020).

    By default these are all axes but the first, which is the outputs of a linear layer, the memories of a Hopfield
    network, and the heads of an attention; a vector stays as it is. So does what has one element along them: its mean
    is itself, and without it a layer of one input would never learn.
    """
    if axes is None:
        axes = tuple(range(1, gradient.dim()))
        if math.prod(gradient.shape[1:]) == 1:
            return
    gradient.sub_(gradient.mean(dim=axes, keepdim=True))


def build_optimizer(cfg: DictConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of ``parameters`` that ``cfg``, a partial, describes.

    Raises:
        UserError: Its class does not take one of the keys, or refuses a value.
    """
    build = instantiate(cfg)
    signature = inspect.signature(build.func).parameters.values()
    taken = [p.name for p in signature if p.name != "params"]
    unknown = [] if any(p.kind is p.VAR_KEYWORD for p in signature) else sorted(build.keywords.keys() - set(taken))
    for key in unknown[:1]:
        advice = key_advice("optim.optimizer", key, taken)
        raise UserError(f"optim.optimizer.{key}: {build.func.__name__} takes no {key}; {advice}")
    try:
        return build(parameters)
    except (ValueError, TypeError) as error:
        raise UserError(f"optim.optimizer: {build.func.__name__} refuses its settings: {error}") from error


def configure(cfg: DictConfig, module: nn.Module, trainer: Any) -> dict[str, Any]:
    """What ``configure_optimizers`` returns for a configuration of the group ``optim``.

    Args:
        cfg: ``optimizer`` (a partial that takes parameters), ``schedule``: ``name`` constant, cosine (down to 0), or
            warmup_cosine with warmup_epochs, start_lr and end_lr.
        module: Module whose parameters are trained.
        trainer: The Lightning trainer, asked for the number of steps.
    """
    optimizer = build_optimizer(cfg.optimizer, [p for p in module.parameters() if p.requires_grad])
    if cfg.schedule.name == "constant":
        return {"optimizer": optimizer}
    if cfg.schedule.name not in ("cosine", "warmup_cosine"):
        raise ValueError(f"optim.schedule.name must be constant, cosine or warmup_cosine, not {cfg.schedule.name!r}")
    peak = cfg.optimizer.lr
    warmup_epochs, start_lr, end_lr = 0, 0.0, 0.0
    if cfg.schedule.name == "warmup_cosine":
        warmup_epochs, start_lr, end_lr = cfg.schedule.warmup_epochs, cfg.schedule.start_lr, cfg.schedule.end_lr
    if 0 < trainer.max_epochs <= warmup_epochs:
        rank_zero_warn(
            f"the learning rate is still warming up when training ends: optim.schedule.warmup_epochs is "
            f"{warmup_epochs}, trainer.max_epochs {trainer.max_epochs}; set both"
        )
    total = int(trainer.estimated_stepping_batches)
    warmup = round(total * min(1.0, warmup_epochs / max(1, trainer.max_epochs)))

    def factor(step: int) -> float:
        return warmup_cosine(step, total, warmup, peak, start_lr, end_lr) / peak

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
