"""Figures of a finished run: what its task family can draw of its network and data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from et.runs.identity import differences
from et.runs.loading import find_run, load_run, output_folder, task_class
from et.utils.files import write_atomically


def draw_run(run: Path, output: Path | None = None, mask_seeds: int | None = None) -> Path:
    """Draw the figures of a run into ``output`` (else its folder ``figures``), with their numbers in figures.json.

    Args:
        run: a run's folder, a folder of runs, a converted checkpoint, or ``pretrained`` (the published weights).
        mask_seeds: masks an image for the ranking of an image run's examples; None: as the run was tested with.

    Raises:
        UserError: no such run, data that is not there, or a task without figures.
    """
    run = find_run(run)
    cfg, network = load_run(run)
    output = output_folder(run, "figures") if output is None else output
    task = task_class(cfg)
    task.set_evaluation(cfg, mask_seeds=mask_seeds)
    numbers = task.draw_figures(network, instantiate(cfg.data), output)
    write_atomically(output / "figures.json", json.dumps(numbers, indent=2) + "\n")
    return output


def compare_positions(runs: Sequence[Path], output: Path) -> Path:
    """Figure 7: the position biases of several image runs, each titled with what sets it apart from the first.

    Raises:
        UserError: one of them is no run of an image Energy Transformer.
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
