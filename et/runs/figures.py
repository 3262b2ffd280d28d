"""Figures of a finished run: what its task family can draw of its network and data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from et.core.precision import CPU_HAS_BFLOAT16
from et.runs.identity import differences
from et.runs.loading import find_run, instantiate_section, is_pretrained, load_run, output_folder, task_class
from et.utils.files import write_atomically


def draw_run(run: Path, output: Path | None = None, mask_seeds: int | None = None, images: Path | None = None) -> Path:
    """Draw the figures of a run into ``output`` (else its folder ``figures``), with their numbers in figures.json.

    Args:
        run: A run's folder, a folder of runs, a converted checkpoint, or ``pretrained`` (the published weights).
        output: Folder of the figures. If None, ``figures`` in the run's folder.
        mask_seeds: Number of masks per image for the ranking of an image run's examples. If None, as the run was tested
            with, and one for ``pretrained`` on the embedded photographs.
        images: Folder of images to show. If None, the run's evaluation images, or the embedded photographs for
            ``pretrained``.

    Raises:
        UserError: No such run, data that is not there, or a task without figures.
    """
    run = find_run(run)
    cfg, network = load_run(run)
    output = output_folder(run, "figures") if output is None else output
    task = task_class(cfg)
    if images is None and is_pretrained(run):  # published weights are of the image model only
        source = {"_target_": "et.inpainting.photos.WholePhotos", "image_size": cfg.data.image_size}
        cfg.data.source, cfg.data.num_workers, cfg.data.mask_seeds = source, 0, 1
    task.set_evaluation(cfg, images=None if images is None else str(images), mask_seeds=mask_seeds)
    data = instantiate_section(cfg, "data", pl.LightningDataModule, run)
    # The published model is 30 times the size of the trainings here; its errors in bfloat16 agree to 1e-5.
    with torch.autocast("cpu", torch.bfloat16, enabled=is_pretrained(run) and CPU_HAS_BFLOAT16):
        numbers = task.draw_figures(network, data, output)
    write_atomically(output / "figures.json", json.dumps(numbers, indent=2) + "\n")
    return output


def compare_positions(runs: Sequence[Path], output: Path) -> Path:
    """Figure 7: the position biases of several image runs, each titled with what sets it apart from the first.

    Raises:
        UserError: One of them is no run of an image Energy Transformer.
    """
    loaded = [load_run(find_run(run)) for run in runs]
    first: dict[str, Any] = _plain(loaded[0][0])
    networks = {}
    for cfg, network in loaded:
        changes = differences(first, _plain(cfg)).items()
        changed = {key: new for key, (_, new) in changes if key != "name" and new is not None}
        networks[", ".join(f"{key.split('.')[-1]} = {value}" for key, value in changed.items()) or cfg.name] = network
    output.mkdir(parents=True, exist_ok=True)
    numbers = task_class(loaded[0][0]).compare_networks(networks, output)
    write_atomically(output / "positions_compared.json", json.dumps(numbers, indent=2) + "\n")
    return output


def _plain(cfg: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=True)
