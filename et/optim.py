"""Optimizers and learning-rate schedules of the paper (tables 4, 9 and 10)."""

from __future__ import annotations

import math
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn


def warmup_cosine(step: int, total: int, warmup: int, peak_lr: float, start_lr: float, end_lr: float) -> float:
    """Learning rate at ``step`` (0-based): linear from start_lr to peak_lr, then a half cosine down to end_lr."""
    if step < warmup:
        return start_lr + (peak_lr - start_lr) * step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return end_lr + 0.5 * (peak_lr - end_lr) * (1 + math.cos(math.pi * progress))


def centralize(gradient: Tensor) -> None:
    """Take the mean over all but the first axis off a gradient of two or more axes, in place (Yong et al. 2020).

    The first axis is the outputs of a linear layer, the memories of a Hopfield network and the heads of an attention.
    """
    if gradient.dim() > 1:
        gradient.sub_(gradient.mean(dim=tuple(range(1, gradient.dim())), keepdim=True))


def _centralize_all(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                centralize(parameter.grad)


def configure(cfg: DictConfig, module: nn.Module, trainer: Any) -> dict[str, Any]:
    """What ``configure_optimizers`` returns for a configuration of the group ``optim``.

    Args:
        cfg: ``optimizer`` (a partial that takes parameters), ``schedule`` (name, warmup_epochs, start_lr, end_lr),
            ``centralize_gradients``.
        module: whose parameters are trained.
        trainer: the Lightning trainer, asked for the number of steps.
    """
    optimizer = instantiate(cfg.optimizer)([p for p in module.parameters() if p.requires_grad])
    if cfg.get("centralize_gradients"):
        optimizer.register_step_pre_hook(_centralize_all)
    if cfg.schedule.name == "constant":
        return {"optimizer": optimizer}
    if cfg.schedule.name != "warmup_cosine":
        raise ValueError(f"optim.schedule.name must be 'constant' or 'warmup_cosine', not {cfg.schedule.name!r}")
    peak = cfg.optimizer.lr
    total = int(trainer.estimated_stepping_batches)
    warmup = round(total * min(1.0, cfg.schedule.warmup_epochs / max(1, trainer.max_epochs)))

    def factor(step: int) -> float:
        return warmup_cosine(step, total, warmup, peak, cfg.schedule.start_lr, cfg.schedule.end_lr) / peak

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
