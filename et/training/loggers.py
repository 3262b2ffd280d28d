"""TensorBoard, wandb and other loggers beside metrics.csv. Tables are made from the files in a run's folder alone.

Each entry of the section ``logger`` is a class to instantiate. A class that takes ``run`` is given a :class:`RunInfo`;
of the others those that take ``save_dir`` write into the run's folder. Runs of a sweep share a group and carry what
their cell is called by, so that either program, grouped by experiment and protocol, shows the table.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from et.runs.record import git_commit, plain_name
from et.utils.errors import UserError, constructor_of


@dataclass(frozen=True)
class RunInfo:
    """What a logger may tell of a run.

    Attributes:
        cfg: Resolved configuration.
        folder: Folder of the run.
        identity: Id of the run.
        commit: Commit of the source tree when the run starts; it may change while the run goes on.
    """

    cfg: DictConfig
    folder: Path
    identity: str
    commit: str = field(default_factory=lambda: git_commit())

    @property
    def cell(self) -> dict[str, Any]:
        """What places a run in a table: sweep (None outside of one), experiment, protocol, fidelity, seed, fold."""
        cfg = self.cfg
        return {
            "sweep": cfg.sweep.name if cfg.get("sweep") else None, "experiment": cfg.name, "protocol": cfg.protocol,
            "fidelity": cfg.fidelity, "seed": cfg.seed, "fold": OmegaConf.select(cfg, "data.fold"),
        }  # fmt: skip

    @property
    def tags(self) -> list[str]:
        """The run's own tags, then experiment, protocol, fidelity, seed and, where there are folds, the fold."""
        cell = self.cell
        tags = [*self.cfg.tags, cell["experiment"], cell["protocol"], f"fidelity {cell['fidelity']}"]
        return [*tags, f"seed {cell['seed']}", *([] if cell["fold"] is None else [f"fold {cell['fold']}"])]


def build_loggers(run: RunInfo) -> list[Logger]:
    """The loggers of the section ``logger``.

    Raises:
        UserError: an entry names something else.
    """
    loggers = []
    for node in (run.cfg.get("logger") or {}).values():
        taken = inspect.signature(constructor_of(node["_target_"])[1]).parameters
        given = {"run": run} if "run" in taken else {"save_dir": run.folder} if "save_dir" in taken else {}
        build = instantiate(node, _partial_=True)  # OmegaConf would make a configuration of the dataclass
        logger = build(**{key: value for key, value in given.items() if key not in node})
        if not isinstance(logger, Logger):
            raise UserError(f"logger: {node['_target_']} is not a Lightning logger (pytorch_lightning.loggers.Logger)")
        loggers.append(logger)
    return loggers


class SteppedWandbLogger(WandbLogger):
    """Lightning's wandb logger with the optimizer step as wandb's own step; a resumed run goes on in its wandb run.

    wandb counts calls of ``log`` from 0 in every process. An offline run that resumes would start at 0 again, and its
    rows would collide with the earlier ones once both parts are synchronised.

    Args:
        run: The run, whose id is that of the wandb run.
        options: Further arguments of Lightning's logger and of ``wandb.init``.
    """

    def __init__(self, run: RunInfo, **options: Any):
        name = "-".join(str(value) for key, value in run.cell.items() if key != "sweep" and value is not None)
        about = {
            "save_dir": run.folder, "name": name, "group": run.cell["sweep"] or run.cfg.name, "tags": run.tags,
            "job_type": run.cfg.protocol, "config": OmegaConf.to_container(run.cfg, resolve=True),
        }  # fmt: skip
        super().__init__(id=run.identity, resume="allow", **{**about, **options})

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = metrics if step is None else {**metrics, "trainer/global_step": step}
        self.experiment.log(row, step=step)


class RunTensorBoardLogger(TensorBoardLogger):
    """Lightning's TensorBoard logger in <run folder>/tensorboard, or in a sweep's one log directory.

    That directory is <runs>/sweeps/<sweep>/tensorboard, with a folder for each cell.

    Args:
        run: The run.
        options: Further arguments of Lightning's logger.
    """

    def __init__(self, run: RunInfo, **options: Any):
        save_dir, name, version = tensorboard_place(run)
        super().__init__(save_dir, name, version, **{"default_hp_metric": False, **options})


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


def tensorboard_place(run: RunInfo) -> tuple[str, str, str]:
    """(save_dir, name, version) of TensorBoard's logger, whose files go to save_dir/name/version."""
    cell = run.cell
    if cell["sweep"] is None:
        return str(run.folder), "", "tensorboard"
    fold = "" if cell["fold"] is None else f"-fold{cell['fold']}"
    run_name = f"{run.cfg.name}/{run.cfg.protocol}-seed{run.cfg.seed}{fold}-{run.identity}"
    return str(Path(run.cfg.paths.runs) / "sweeps" / plain_name(cell["sweep"], "sweep.name")), "tensorboard", run_name


def log_outcome(loggers: list[Logger], run: RunInfo, metrics: Mapping[str, float]) -> None:
    """The cell and its test metrics as TensorBoard's hparams, one row a run; wandb has both by itself."""
    known = {key: value for key, value in run.cell.items() if value is not None}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams({**known, "tags": ", ".join(run.cfg.tags)}, dict(metrics))
            logger.save()
