"""Configurations that came with a run folder or a checkpoint: read without executing anything that is in them.

A configuration names what it is made of (``_target_``), and Hydra calls whatever it names. Only the names listed here
are allowed in a configuration that this process did not compose itself.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from et.runs.record import plain_name
from et.utils.errors import UserError

# Classes of a person's own, for which they vouch: ET_TRUSTED_TARGETS=my_network.Neighbours,my_data.Graphs
TRUSTED = "ET_TRUSTED_TARGETS"

# A list, although it names classes of every family: to ask a class whether it may be named would import its module.
TARGETS = frozenset(
    {
        "et.anomaly.data.NodeDataModule",
        "et.anomaly.lit.AnomalyTask",
        "et.anomaly.lit.FittedTask",
        "et.anomaly.model.AnomalyTransformer",
        "et.baselines.blend.Blend.of_et",
        "et.baselines.blend.Blend.of_mlp",
        "et.baselines.blend.Ensemble.of_et",
        "et.baselines.blend.Ensemble.of_mlp",
        "et.baselines.bwgnn.BWGNN",
        "et.baselines.graph_networks.GAT",
        "et.baselines.graph_networks.GIN",
        "et.baselines.graph_networks.GraphTransformer",
        "et.baselines.neighbour_trees.NeighbourTrees",
        "et.baselines.neighbour_trees.RFGraph",
        "et.baselines.neighbour_trees.XGBGraph",
        "et.baselines.node_gnn.NodeGNN",
        "et.baselines.node_mlp.NodeMLP",
        "et.baselines.node_transformer.NodeTransformer",
        "et.baselines.pmp.PMP",
        "et.baselines.vit.InpaintingViT",
        "et.graphs.data.GraphData",
        "et.graphs.lit.GraphTask",
        "et.graphs.model.GraphEnergyTransformer",
        "et.graphs.model.GraphEnergyTransformer.of_fidelity",
        "et.inpainting.data.InpaintingData",
        "et.inpainting.folders.ImageFolders",
        "et.inpainting.lit.InpaintingTask",
        "et.inpainting.model.InpaintingET",
        "et.inpainting.photos.Photos",
        "et.inpainting.pictures.Pictures",
        "et.inpainting.scores.ImageScores",
        "pytorch_lightning.Trainer",
        # Lightning's callbacks that write no files: one that does would write wherever the configuration says.
        *(
            f"pytorch_lightning.callbacks.{name}"
            for name in (
                "EarlyStopping", "GradientAccumulationScheduler", "LearningRateMonitor", "ModelSummary",
                "RichModelSummary", "DeviceStatsMonitor", "StochasticWeightAveraging", "WeightAveraging",
                "EMAWeightAveraging",
            )
        ),
        *(
            f"torch.optim.{name}"
            for name in (
                "ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop",
                "Rprop", "SGD",
            )
        ),
    }
)  # fmt: skip

# The only arguments of a class that a configuration from a file may set: where it writes is not the file's to say.
ARGUMENTS = {"et.inpainting.scores.ImageScores": ("_target_", "resume")}

# Loggers that a run's configuration may name. They are not called: a configuration from a file logs nowhere.
LOGGERS = frozenset(
    {
        "et.training.loggers.RunTensorBoardLogger",
        "et.training.loggers.SteppedWandbLogger",
        *(
            f"pytorch_lightning.loggers.{name}"
            for name in (
                "CSVLogger",
                "CometLogger",
                "MLFlowLogger",
                "NeptuneLogger",
                "TensorBoardLogger",
                "WandbLogger",
            )
        ),
    }
)


LARGEST = 2**20  # bytes of a config.yaml; a run's has a few thousand


def read_config(file: Path) -> DictConfig:
    """The config.yaml of a run folder, checked by :func:`trusted`.

    Raises:
        UserError: It cannot be read, or would have to execute something that is not allowed.
    """
    try:
        if file.stat().st_size > LARGEST:
            raise UserError(f"{file} is larger than {LARGEST} bytes, which no configuration is: it is not read")
        text = file.read_text(encoding="utf-8")
        # to_yaml writes no aliases, and a few lines of them can stand for gigabytes.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise UserError(f"{file} has YAML aliases, which no run writes: it is not read")
        return trusted(OmegaConf.create(text), str(file))
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{file} is not a readable configuration ({type(error).__name__}: {reason})") from error


def trusted(config: Any, where: str) -> DictConfig:
    """``config``, a foreign configuration, once everything it names is known to be allowed.

    Args:
        config: A mapping or configuration. It must be resolved, as a run's always is: a resolver is code too.
        where: What it is, for messages.

    Raises:
        UserError: It names a ``_target_`` that is not allowed, has an interpolation, is no mapping of sections, or its
            name is no name of a folder.
    """
    try:
        config = config if isinstance(config, DictConfig) else OmegaConf.create(config)
        plain = OmegaConf.to_container(config, resolve=False)
    except (OmegaConfBaseException, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{where} is not a configuration: {(str(error).splitlines() or [''])[0]}") from error
    if not isinstance(config, DictConfig) or not isinstance(plain, Mapping):
        raise UserError(f"{where} is not a configuration: it is not a mapping")
    check_targets(plain, where)
    try:
        json.dumps(plain, sort_keys=True)  # as its run id does
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} holds values that no run writes: {error}") from error
    for section in ("data", "model", "task", "optim", "trainer", "callbacks", "paths"):
        if not isinstance(plain.get(section), Mapping):
            raise UserError(f"{where} is not the configuration of a run: it has no section {section}")
    for section in ("data", "model", "task"):
        if "_target_" not in plain[section]:
            raise UserError(f"{where} is not the configuration of a run: {section} names no class")
    plain_name(plain.get("name"), f"{where}: name")
    config = OmegaConf.create({**plain, "logger": {}})
    config.data.pop("cache", None)  # derived files go where this machine keeps them
    return config


def check_targets(plain: Any, where: str) -> None:
    """Check everything that a configuration names.

    Args:
        plain: The configuration as plain data.
        where: What it is, for messages.

    Raises:
        UserError: A ``_target_`` or an argument of it is not allowed, or a value is an interpolation.
    """
    allowed = TARGETS | {name.strip() for name in os.environ.get(TRUSTED, "").split(",")}
    for path, value in _nodes(plain):
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{where}: {path} has an interpolation ({value}), which no run writes: it is not read")
        target = value.get("_target_") if isinstance(value, Mapping) else None
        if isinstance(target, str) and not set(value) <= set(ARGUMENTS.get(target, value)):
            raise UserError(f"{where}: {path} may set {', '.join(ARGUMENTS[target][1:])} of {target}, and nothing else")
        known = allowed | LOGGERS if re.fullmatch(r"logger\.[^.\[\]]+\._target_", path) else allowed
        if path.rpartition(".")[2] == "_target_" and not (isinstance(value, str) and value in known):
            raise UserError(
                f"{where}: {path} names {value!r}, which is not called: it is none of the classes that a configuration "
                f"from a file may name (et/runs/foreign.py). If it is yours and you trust it, set {TRUSTED}={value}"
            )


def _nodes(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key and every value in nested mappings and lists, with its dotted path."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield f"{path}(key)", key
            below = f"{path}.{key}" if path else str(key)
            yield below, child
            yield from _nodes(child, below)
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield f"{path}[{index}]", child
            yield from _nodes(child, f"{path}[{index}]")
