"""Scores and predictions of a finished run or of a converted checkpoint, on the run's data or on a folder of images."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from et.runs.fingerprint import check_unseen
from et.runs.folder import SCORES
from et.runs.loading import family, fill, load_weights
from et.runs.record import read_result, run_id
from et.training.callbacks import KeptScores
from et.training.run import accelerator, check_precision, compute_exactly, quiet_libraries
from et.utils.errors import UserError
from et.utils.files import replacing, write_atomically

OPTIONS = (
    "run", "checkpoint", "images", "crop_mode", "crop_pct", "output", "mask_seeds", "precision", "device", "progress",
)  # fmt: skip
OF_IMAGES = ("images", "crop_mode", "crop_pct", "mask_seeds")


def evaluate(options: DictConfig) -> dict[str, Any]:
    """Test metrics of the weights that ``options`` (conf/evaluate.yaml) name; also written to evaluation.json.

    Beside it go the predictions for all nodes or graphs (predictions.npz, see :func:`predict`), or pictures and each
    image's scores (scores.csv). Of ``images`` each is completed: completions/NAME.png.

    Raises:
        UserError: no such run, an unknown option, weights that do not fit, data that is not there.
    """
    unknown = [key for key in options if key not in OPTIONS]
    if unknown:
        raise UserError(
            f"evaluate.py knows {', '.join(OPTIONS)}, not {', '.join(unknown)}: data and model are those of the run"
        )
    cfg, weights, output, loaded = load_weights(options.run, options.checkpoint)
    of_images = family(cfg) == "inpainting"
    apply_options(options, cfg)
    if options.output:
        output = Path(options.output)
    elif options.images is not None:
        output = own_folder(output, Path(options.images))
    task, data = assemble(cfg, weights, options.run)
    output.mkdir(parents=True, exist_ok=True)
    kept_scores = KeptScores(output / SCORES, run_id(OmegaConf.to_container(cfg, resolve=True)))
    callbacks: list[pl.Callback] = [kept_scores]
    if of_images:
        from et.inpainting.pictures import CompletedImages
        from et.inpainting.scores import ImageScores

        callbacks.append(ImageScores(output))
        if options.images is not None:
            callbacks.append(CompletedImages(output, data.source.eval_names))
    trainer = build_tester(cfg, options.device, options.progress, callbacks)
    trainer.test(task, data, verbose=False)
    if options.images is None:
        warn_of_changed_data(options.run, data)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    record = {"run": str(options.run), "checkpoint": loaded, "dataset": data.describe(), "metrics": metrics}
    if options.images is not None:
        source = OmegaConf.to_container(cfg.data.source, resolve=True)
        fitted = {key: source[key] for key in ("image_size", "crop_mode", "crop_pct")}
        record |= {"images": str(Path(options.images).resolve()), "fitted": fitted}
    write_atomically(output / "evaluation.json", json.dumps(record, indent=2, sort_keys=True) + "\n")
    kept_scores.forget()
    if of_images:
        from et.inpainting.pictures import draw_report

        draw_report(task.network, data, output)
    else:
        with replacing(output / "predictions.npz") as fresh:
            np.savez(fresh, **{name: values.numpy() for name, values in predictions(trainer, task, data).items()})
    return {**record, "output": str(output)}


def apply_options(options: DictConfig, cfg: DictConfig) -> None:
    """Change a run's configuration as ``options`` (conf/evaluate.yaml) say.

    Raises:
        UserError: an option that does not go with the run or the others, or that has no such value.
    """
    given = [key for key in OF_IMAGES if options.get(key) is not None]
    if family(cfg) != "inpainting" and given:
        raise UserError(f"images= and mask_seeds= are of image completion; {cfg.name} is no image experiment")
    if options.images is None and {"crop_mode", "crop_pct"} & set(given):
        raise UserError("crop_mode= and crop_pct= say how images= are fitted to the model: name a folder of images too")
    if options.images is not None:
        cfg.data.source, cfg.data.num_workers = image_folder(options, cfg), 0
    if options.mask_seeds is not None:
        cfg.data.mask_seeds = cfg.task.mask_seeds = options.mask_seeds
    if options.get("precision") is not None:
        cfg.trainer.precision = options.precision
        check_precision(cfg)


def image_folder(options: DictConfig, cfg: DictConfig) -> dict[str, Any]:
    """Configuration of the folder of images that is to be completed, fitted as ``options`` say.

    Raises:
        UserError: ``crop_mode`` or ``crop_pct`` has no such value.
    """
    crop_mode, crop_pct = options.get("crop_mode") or "center", options.get("crop_pct")
    crop_pct = 1.0 if crop_pct is None else crop_pct
    if crop_mode not in ("center", "squash", "border"):
        raise UserError(f"crop_mode must be center, squash or border, not {crop_mode!r}")
    if not isinstance(crop_pct, int | float) or not 0 < crop_pct <= 1:
        raise UserError(f"crop_pct must be above 0 and at most 1, not {crop_pct}")
    return {
        "_target_": "et.inpainting.folders.ImageFolders", "root": str(options.images), "train": None,
        "evaluation": ".", "image_size": cfg.data.image_size, "name": Path(options.images).resolve().name,
        "crop_mode": crop_mode, "crop_pct": crop_pct,
    }  # fmt: skip


def own_folder(output: Path, images: Path) -> Path:
    """Where the evaluation of a folder of images goes, so that two folders of one name do not share it."""
    images = images.resolve()
    try:
        other = json.loads((output / images.name / "evaluation.json").read_text())["images"] != str(images)
    except (OSError, ValueError, KeyError):
        other = (output / images.name).exists()
    marked = f"{images.name}-{hashlib.sha256(str(images).encode()).hexdigest()[:6]}"
    return output / (marked if other else images.name)


def predict(run: Path | str, checkpoint: str | None = None, device: str = "auto") -> dict[str, Tensor]:
    """What a run's network says of every node or graph of its data, in the order of the data's files.

    Args:
        run: the run's folder.
        checkpoint: best or last; None: the one that the run was tested with.
        device: auto, cpu or gpu.

    Returns:
        Node anomaly detection: ``probability`` (N,) of being anomalous, and ``label`` (N,). Graphs: ``output``, (G, C)
        probabilities of the classes (C is 10 for released models, whatever the data), or (G, 1) of a regression, with
        nodes for graphs where nodes are classified; and ``target``. Of three lists, the training graphs come first and
        the test graphs last. Both: ``part``, 0 in no part, 1 train, 2 validation, 3 test.

    Raises:
        UserError: no such run, weights that do not fit, data that is not there; or the run completes images.
    """
    cfg, weights, *_ = load_weights(run, checkpoint)
    if family(cfg) == "inpainting":
        raise UserError("images are completed by et.inpainting.pictures.complete, or by evaluate.py")
    task, data = assemble(cfg, weights, run)
    found = predictions(build_tester(cfg, device, progress=False), task, data)
    warn_of_changed_data(run, data)
    return found


def assemble(
    cfg: DictConfig, weights: dict[str, Tensor], run: Path | str
) -> tuple[pl.LightningModule, pl.LightningDataModule]:
    """Task and data of a configuration, with the weights of ``run``.

    Raises:
        UserError: the weights do not fit, or were trained on test samples of the data.
    """
    record = read_result(Path(run))
    if record is not None and cfg.data.get("name") is not None:
        check_unseen(record["dataset"]["name"], cfg.data.name)
    data, network = instantiate(cfg.data), instantiate(cfg.model)
    task = instantiate(cfg.task, network=network, optim=cfg.optim)
    fill(task, weights, run)
    return task, data


def build_tester(cfg: DictConfig, device: str, progress: bool, callbacks: Sequence[pl.Callback] = ()) -> pl.Trainer:
    """A trainer that only scores, and by itself writes nothing."""
    quiet_libraries()
    compute_exactly()
    return pl.Trainer(
        accelerator=accelerator(device), devices=1, logger=False, enable_progress_bar=progress,
        precision=cfg.trainer.precision, enable_checkpointing=False, enable_model_summary=False,
        callbacks=list(callbacks),
    )  # fmt: skip


def warn_of_changed_data(run: Path | str, data: pl.LightningDataModule) -> None:
    """Warn where ``data``, which have been set up, are not those that ``run`` was recorded with."""
    record = read_result(Path(run))
    if record is not None and record["dataset"]["sha256"] != data.describe()["sha256"]:
        warnings.warn(
            f"{record['dataset']['name']} has changed since {run} was recorded: its split may be another one, so that "
            "what is tested now may have been trained on",
            stacklevel=2,
        )


def predictions(trainer: pl.Trainer, task: pl.LightningModule, data: pl.LightningDataModule) -> dict[str, Tensor]:
    """The predictions of all batches, one after another, on the CPU, and in which part of the data each item is."""
    batches = trainer.predict(task, data)
    found = {name: torch.cat([batch[name].cpu() for batch in batches]) for name in batches[0]}
    return {**found, "part": data.parts()}
