"""A finished run, loaded: where it is, its configuration, its trained network, its task family."""

from __future__ import annotations

from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from et.errors import UserError
from et.identity import config_of
from et.record import read_result, run_dir, run_id


def find_run(path: Path) -> Path:
    """``path`` itself where it is a run or a checkpoint; of a folder of runs the one that was started last."""
    if path.is_file() or (path / "config.yaml").exists():
        return path
    runs = sorted(path.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime)
    return runs[-1].parent if runs else path


def own_run(*overrides: str) -> Path:
    """The folder of the run that ``python train.py OVERRIDES`` makes, whatever other runs the experiment has.

    Raises:
        UserError: the overrides do not compose.
    """
    config = config_of(overrides)
    return run_dir(config["paths"]["runs"], config["name"], run_id(config))


def load_run(run: Path | str, checkpoint: str | None = None) -> tuple[DictConfig, torch.nn.Module]:
    """Configuration and trained network, in evaluation mode, of a run's folder or of a converted checkpoint.

    ``checkpoint`` is best or last; None: the one that the run was tested with.

    Raises:
        UserError: there is none, or its weights do not fit.
    """
    cfg, weights, *_ = load_weights(run, checkpoint)
    network, prefix = instantiate(cfg.model), "network."
    fill(network, {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}, run)
    return cfg, network.eval()


def load_weights(run: Path | str, checkpoint: str | None) -> tuple[DictConfig, dict[str, torch.Tensor], Path, str]:
    """Configuration and weights of a run's folder or of a converted checkpoint, where output belongs, the file's name.

    Raises:
        UserError: nothing there, or nothing that loads as plain tensors.
    """
    run = Path(run)
    if run.is_dir():
        if not (run / "config.yaml").exists():
            raise UserError(f"{run} is no run folder: it has no config.yaml")
        cfg = OmegaConf.load(run / "config.yaml")
        record = read_result(run)
        nothing_validated = record is not None and record.get("best_epoch") is None
        wanted = checkpoint or ("best" if cfg.checkpoint == "best" and not nothing_validated else "last")
        path, output = run / "checkpoints" / f"{wanted}.ckpt", run / "evaluation"
    else:
        cfg, path, output = None, run, run.parent / f"{run.stem}_evaluation"
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} is not a checkpoint of plain tensors: {str(error).splitlines()[0]}") from error
    if cfg is None:
        if "config" not in saved:
            raise UserError(f"{path} holds no configuration: name the run's folder, or convert the checkpoint first")
        cfg = OmegaConf.create(saved["config"])
    return cfg, saved["state_dict"], output, path.name


def fill(module: torch.nn.Module, weights: dict[str, torch.Tensor], run: Path | str) -> None:
    """Load ``weights``, which are those of ``run``, into ``module``.

    Raises:
        UserError: they do not fit.
    """
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"the weights do not fit the configuration of {run}: {error}") from error


def family(cfg: DictConfig) -> str:
    """The task family of a run's configuration: inpainting, anomaly or graphs."""
    return str(cfg.task._target_).split(".")[1]
