"""Scores of a finished run or of a converted checkpoint, on the run's data or on a folder of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig

from et.errors import UserError
from et.files import write_atomically
from et.loading import family, fill, load_weights


def evaluate(options: DictConfig) -> dict[str, Any]:
    """Test metrics of the weights that ``options`` (conf/evaluate.yaml) name; also written to evaluation.json.

    Raises:
        UserError: no such run, weights that do not fit, data that is not there.
    """
    cfg, weights, output = load_weights(Path(options.run), options.checkpoint)
    output = Path(options.output) if options.output else output
    of_images = family(cfg) == "inpainting"
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
    fill(task, weights, options.run)
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
