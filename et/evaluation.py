"""Scores of a finished run or of a converted checkpoint, on the run's data or on a folder of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from et.errors import UserError
from et.record import read_result, write_atomically


def load_weights(run: Path, checkpoint: str | None) -> tuple[DictConfig, dict[str, torch.Tensor], Path]:
    """Configuration and weights of a run's folder or of a converted checkpoint, and where output belongs.

    Raises:
        UserError: nothing there, or nothing that loads as plain tensors.
    """
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
    return cfg, saved["state_dict"], output


def evaluate(options: DictConfig) -> dict[str, Any]:
    """Test metrics of the weights that ``options`` (conf/evaluate.yaml) name; also written to evaluation.json.

    Raises:
        UserError: no such run, weights that do not fit, data that is not there.
    """
    cfg, weights, output = load_weights(Path(options.run), options.checkpoint)
    output = Path(options.output) if options.output else output
    of_images = str(cfg.task._target_).startswith("et.inpainting.")
    if not of_images and (options.images is not None or options.mask_seeds is not None):
        raise UserError(f"images= and mask_seeds= are of image completion; {cfg.name} is no image experiment")
    if options.images is not None:
        cfg.data.source = {
            "_target_": "et.inpainting.folders.ImageFolders", "root": str(options.images), "train": None,
            "evaluation": ".", "image_size": cfg.data.image_size, "name": Path(options.images).name,
        }  # fmt: skip
    if options.mask_seeds is not None:
        cfg.data.mask_seeds = cfg.task.mask_seeds = options.mask_seeds
    data, network = instantiate(cfg.data), instantiate(cfg.model)
    task = instantiate(cfg.task, network=network, optim=cfg.optim)
    try:
        task.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"the weights do not fit the configuration of {options.run}: {error}") from error
    trainer = pl.Trainer(
        accelerator=options.device, devices=1, logger=False, enable_progress_bar=options.progress,
        precision=cfg.trainer.precision, enable_checkpointing=False,
    )  # fmt: skip
    trainer.test(task, data, verbose=False)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    record = {"run": str(options.run), "dataset": data.describe(), "metrics": metrics}
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "evaluation.json", json.dumps(record, indent=2, sort_keys=True) + "\n")
    if of_images:
        from et.inpainting.pictures import draw_report

        draw_report(network, data, output)
    return {**record, "output": str(output)}
