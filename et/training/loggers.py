"""TensorBoard and wandb beside metrics.csv. The files in a run's folder stay the truth that tables are made from.

Runs of a sweep share a group and carry what their cell is called by, so that either program, grouped by experiment and
protocol, shows the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from et.runs.record import plain_name
from et.utils.errors import UserError


def cell_of(cfg: DictConfig) -> dict[str, Any]:
    """What places a run in a table: sweep (None outside of one), experiment, protocol, fidelity, seed, fold."""
    return {
        "sweep": group_of(cfg), "experiment": cfg.name, "protocol": cfg.protocol, "fidelity": cfg.fidelity,
        "seed": cfg.seed, "fold": OmegaConf.select(cfg, "data.fold"),
    }  # fmt: skip


def group_of(cfg: DictConfig) -> str | None:
    """Name of the sweep that a run is part of; None for a run on its own."""
    return cfg.sweep.name if cfg.get("sweep") else None


def tags_of(cfg: DictConfig) -> list[str]:
    """The run's own tags, then those of its cell: experiment, protocol, fidelity, seed and, with folds, the fold."""
    cell = cell_of(cfg)
    tags = [*cfg.tags, cell["experiment"], cell["protocol"], f"fidelity {cell['fidelity']}", f"seed {cell['seed']}"]
    return tags if cell["fold"] is None else [*tags, f"fold {cell['fold']}"]


def extra_loggers(cfg: DictConfig, folder: Path, identity: str) -> list[Logger]:
    """The loggers of ``logger.extra``; a run that resumes goes on in the same wandb run.

    TensorBoard writes into <run folder>/tensorboard, in a sweep into <runs>/sweeps/<sweep>/tensorboard/<cell>: that
    folder is the sweep's log directory.

    Raises:
        UserError: ``logger.extra`` names one that is not known.
    """
    loggers: list[Logger] = []
    for name in cfg.logger.extra:
        if name == "tensorboard":
            loggers.append(TensorBoardLogger(*tensorboard_place(cfg, folder, identity), default_hp_metric=False))
        elif name == "wandb":
            run_name = "-".join(
                str(value) for key, value in cell_of(cfg).items() if key != "sweep" and value is not None
            )
            loggers.append(
                SteppedWandbLogger(
                    save_dir=folder, id=identity, name=run_name, group=group_of(cfg) or cfg.name, job_type=cfg.protocol,
                    tags=tags_of(cfg), config=OmegaConf.to_container(cfg, resolve=True), resume="allow",
                    **cfg.logger.wandb,
                )
            )  # fmt: skip
        else:
            raise UserError(f"logger.extra knows 'tensorboard' and 'wandb', not {name!r}")
    return loggers


class SteppedWandbLogger(WandbLogger):
    """Lightning's wandb logger with the optimizer step as wandb's own step.

    wandb counts calls of ``log`` from 0 in every process. An offline run that resumes would start at 0 again, and its
    rows would collide with the earlier ones once both parts are synchronised.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = metrics if step is None else {**metrics, "trainer/global_step": step}
        self.experiment.log(row, step=step)


def finish_loggers(loggers: list[Logger], identity: str, error: BaseException | None = None) -> None:
    """End the wandb run of the training run ``identity``: the next run of this process would write into it.

    A wandb run that the caller of :func:`et.training.run.train` started has another id and stays open.

    Args:
        loggers: Loggers of the run.
        identity: Id of the run.
        error: What ended the run, None if it finished.
    """
    if not any(isinstance(logger, WandbLogger) for logger in loggers):
        return
    import wandb

    if wandb.run is not None and wandb.run.id == identity:
        code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
        wandb.run.finish(exit_code=0 if error is None else code)


def tensorboard_place(cfg: DictConfig, folder: Path, identity: str) -> tuple[str, str, str]:
    """(save_dir, name, version) of TensorBoard's logger, whose files go to save_dir/name/version."""
    sweep, cell = group_of(cfg), cell_of(cfg)
    if sweep is None:
        return str(folder), "", "tensorboard"
    fold = "" if cell["fold"] is None else f"-fold{cell['fold']}"
    run_name = f"{cfg.name}/{cfg.protocol}-seed{cfg.seed}{fold}-{identity}"
    return str(Path(cfg.paths.runs) / "sweeps" / plain_name(sweep, "sweep.name")), "tensorboard", run_name


def log_outcome(loggers: list[Logger], cfg: DictConfig, metrics: Mapping[str, float]) -> None:
    """The cell and its test metrics as TensorBoard's hparams, one row a run; wandb has both by itself."""
    known = {key: value for key, value in cell_of(cfg).items() if value is not None}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams({**known, "tags": ", ".join(cfg.tags)}, dict(metrics))
            logger.save()
