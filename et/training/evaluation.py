"""Scores and predictions of a finished run or of a converted checkpoint, on the run's data or on a folder of images."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from et.runs.fingerprint import check_unseen
from et.runs.folder import SCORES
from et.runs.foreign import read_config
from et.runs.loading import fill, instantiate_section, load_weights, run_checkpoint, task_class
from et.runs.record import read_result, run_id
from et.training.callbacks import KeptScores
from et.training.task import Task
from et.training.trainer import build_tester, quiet_libraries
from et.training.trainer_options import check_precision
from et.utils.errors import UserError, raise_user_errors
from et.utils.files import write_atomically

OF_IMAGES = ("images", "crop_mode", "crop_pct", "mask_seeds")
OPTIONS = ("run", "checkpoint", *OF_IMAGES, "output", "precision", "device", "progress")


def evaluate(options: DictConfig) -> dict[str, Any]:
    """Test metrics of the weights that ``options`` (conf/evaluate.yaml) name; also written to evaluation.json.

    Beside it goes what the task reports: predictions of all nodes or graphs (predictions.npz, see :func:`predict`), or
    pictures and each image's scores (scores.csv). Of ``images`` each is completed: completions/NAME.png.

    Raises:
        UserError: No such run, an unknown option, weights that do not fit, data that is not there.
    """
    quiet_libraries()  # first: what follows imports them
    unknown = [key for key in options if key not in OPTIONS]
    if unknown:
        raise UserError(
            f"evaluate.py knows {', '.join(OPTIONS)}, not {', '.join(unknown)}: data and model are those of the run"
        )
    cfg, weights, output, loaded = load_weights(options.run, options.checkpoint)
    apply_options(options, cfg)
    if options.output:
        output = Path(options.output)
    elif options.images is not None:
        output = own_folder(output, Path(options.images))
    task, data = assemble(cfg, weights, options.run)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write the folder {output}: {error.strerror}; set output to another one") from error
    kept_scores = KeptScores(output / SCORES, run_id(OmegaConf.to_container(cfg, resolve=True)))
    callbacks = task.evaluation_callbacks(data, output, own_items=options.images is not None)
    trainer = build_tester(cfg, options.device, options.progress, kept_scores, *callbacks)
    with raise_user_errors():
        trainer.test(task, data, verbose=False)
    if options.images is None:
        warn_of_changed_data(options.run, options.checkpoint, data)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    record = {"run": str(options.run), "checkpoint": loaded, "dataset": data.describe(), "metrics": metrics}
    if options.images is not None:
        fitted = {key: OmegaConf.select(cfg.data.source, key) for key in ("image_size", "crop_mode", "crop_pct")}
        record |= {"images": str(Path(options.images).resolve()), "fitted": fitted}
    write_atomically(output / "evaluation.json", json.dumps(record, indent=2, sort_keys=True) + "\n")
    kept_scores.forget()
    with raise_user_errors():
        task.write_report(trainer, data, output)
    return {**record, "output": str(output)}


def apply_options(options: DictConfig, cfg: DictConfig) -> None:
    """Change a run's configuration as ``options`` (conf/evaluate.yaml) say.

    Raises:
        UserError: An option that does not go with the run or the others, or that has no such value.
    """
    task = task_class(cfg)
    task.set_evaluation(cfg, **{key: options.get(key) for key in OF_IMAGES})
    if options.get("precision") is not None:
        cfg.trainer.precision = options.precision
    check_precision(cfg.trainer, task)


def own_folder(output: Path, images: Path) -> Path:
    """Where the evaluation of a folder of images goes, so that two folders of one name do not share it."""
    images = images.resolve()
    try:
        other = json.loads((output / images.name / "evaluation.json").read_text())["images"] != str(images)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        other = (output / images.name).exists()
    marked = f"{images.name}-{hashlib.sha256(str(images).encode()).hexdigest()[:6]}"
    return output / (marked if other else images.name)


def predict(run: Path | str, checkpoint: str | None = None, device: str = "auto") -> dict[str, Tensor]:
    """What a run's network says of every node or graph of its data, in the order of the data's files.

    Args:
        run: The run's folder.
        checkpoint: ``best`` or ``last``. If None, the one that the run was tested with.
        device: ``auto``, ``cpu`` or ``gpu``.

    Returns:
        Node anomaly detection: ``probability`` (N,) of being anomalous, and ``label`` (N,). Graphs: ``output``, (G, C)
        probabilities of the classes (C is 10 for released models, whatever the data), or (G, 1) of a regression, with
        nodes for graphs where nodes are classified; and ``target``. Of three lists, the training graphs come first and
        the test graphs last. Both: ``part``, 0 in no part, 1 train, 2 validation, 3 test.

    Raises:
        UserError: No such run, weights that do not fit, data that is not there; or the run completes images.
    """
    quiet_libraries()
    cfg, weights, *_ = load_weights(run, checkpoint)
    if not task_class(cfg).predicts():
        raise UserError(f"{cfg.name} has no predictions of single items: evaluate.py writes what its task can show")
    task, data = assemble(cfg, weights, run)
    with raise_user_errors():
        found = task.predictions(build_tester(cfg, device, progress=False), data)
    warn_of_changed_data(run, checkpoint, data)
    return found


def assemble(cfg: DictConfig, weights: dict[str, Tensor], run: Path | str) -> tuple[Task, pl.LightningDataModule]:
    """Task and data of a configuration, with the weights of ``run``.

    Raises:
        UserError: Something cannot be built, the weights do not fit, or were trained on test samples of the data.
    """
    record = read_result(Path(run))
    if record is not None and cfg.data.get("name") is not None:
        check_unseen(record["dataset"]["name"], cfg.data.name)
    check_precision(cfg.trainer, task_class(cfg))
    data = instantiate_section(cfg, "data", pl.LightningDataModule, run)
    network = instantiate_section(cfg, "model", torch.nn.Module, run)
    task = instantiate_section(cfg, "task", Task, run, network=network, optim=cfg.optim)
    fill(task, weights, run)
    return task, data


def warn_of_changed_data(run: Path | str, checkpoint: str | None, data: pl.LightningDataModule) -> None:
    """Warn if ``run`` is not finished, and if ``data``, which have been set up, are not those that it was trained on.

    Those of a run without a record are named in its checkpoint.
    """
    now, record = data.describe(), read_result(Path(run))
    if record is not None:
        before: str | None = record["dataset"]["sha256"]
    elif (Path(run) / "config.yaml").exists():
        path, saved = run_checkpoint(Path(run), read_config(Path(run) / "config.yaml"), checkpoint)
        before = saved.get("data_sha256")
        warnings.warn(f"{run} is not finished: these are the weights of {path.name}", stacklevel=2)
    else:
        return
    if before not in (None, now["sha256"]):
        warnings.warn(
            f"{now['name']} has changed since {run} was trained: its split may be another one, so that what is tested "
            "now may have been trained on",
            stacklevel=2,
        )
