"""Convert a model that the authors published into a checkpoint that evaluate.py reads.

SOURCE is one of
  plaindict_ckpt.npz                             image model: arrays by name
  checkpoint.ckpt                                image model: Flax
  example_model/model.pth                        PyTorch port, with model_config.txt beside it
  saved_models/DD/checkpoint_5700                graph model: Flax; needs --experiment tu_dd

Then: python evaluate.py run=OUT.ckpt images=FOLDER, or, for a graph model, python evaluate.py run=OUT.ckpt
Files that would execute code when they are read (pickles) are refused.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from et.utils.errors import exit_on_user_error


def convert(source: Path, target: Path, experiment: str | None = None) -> None:
    """Write ``target``: the weights under the names of this project, and the configuration they run with.

    Args:
        source: What the authors published.
        target: Checkpoint to write.
        experiment: Of a graph model, the experiment that it belongs to. If None, the source is an image model.

    Raises:
        UserError: the source is not readable, would execute code, or does not fit the experiment.
    """
    import torch
    from omegaconf import OmegaConf

    cfg, state = image_model(source) if experiment is None else graph_model(source, experiment)
    weights = {f"network.{name}": value for name, value in state.items()}
    torch.save({"state_dict": weights, "config": OmegaConf.to_container(cfg, resolve=True)}, target)
    print(f"{target}: {sum(value.numel() for value in weights.values()):,} numbers")


def image_model(source: Path) -> tuple[Any, dict[str, Any]]:
    """Configuration and state of an image model, on the data of ``imagenet_inpainting``."""
    from omegaconf import open_dict

    from et.integrations.official_images import load_official

    arguments, state = load_official(source)
    cfg = compose_released("imagenet_inpainting", "trainer=default")
    cfg.data.image_size, cfg.data.patch_size = arguments.pop("image_size"), arguments.pop("patch_size")
    arguments = {"block": {"beta": None}, **arguments}
    patches = len(state["position"]) - 1
    cfg.data.num_occluded, cfg.data.num_kept = round(patches * 100 / 196), round(patches * 10 / 196)
    cfg.data.batch_size = 32
    with open_dict(cfg.model):
        cfg.model.block.update(arguments.pop("block"))
        cfg.model.update({name: value for name, value in arguments.items() if name not in ("channels", "fidelity")})
    return cfg, state


def graph_model(source: Path, experiment: str) -> tuple[Any, dict[str, Any]]:
    """Configuration and state of a graph model, on the data of ``experiment``."""
    from hydra.utils import instantiate
    from omegaconf import open_dict

    from et.integrations.official_graphs import load_official_graph_model
    from et.runs.loading import fill
    from et.utils.errors import UserError

    arguments, state = load_official_graph_model(source)
    cfg = compose_released(experiment, "protocol=released")
    if "released" not in cfg.model:
        raise UserError(f"--experiment must be an experiment of ET on graphs, such as tu_dd, not {experiment}")
    with open_dict(cfg.model):
        cfg.model.released.update({name: value for name, value in arguments.items() if name != "in_features"})
    if cfg.data.num_features != arguments["in_features"]:
        raise UserError(
            f"{source} is for nodes of {arguments['in_features']} features, {experiment} has {cfg.data.num_features}"
        )
    fill(instantiate(cfg.model), state, source)
    return cfg, state


def compose_released(experiment: str, *overrides: str) -> Any:
    """The configuration of an experiment under fidelity=released, with a name of its own."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(Path(__file__).resolve().parents[1] / "conf"), version_base="1.3"):
        cfg = compose("train", [f"experiment={experiment}", "fidelity=released", *overrides])
    cfg.name = "official_checkpoint"
    return cfg


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="what the authors published")
    parser.add_argument("target", type=Path, help="checkpoint to write")
    parser.add_argument("--experiment", help="for a graph model: the experiment that has its data, such as tu_dd")
    arguments = parser.parse_args()
    exit_on_user_error(lambda: convert(arguments.source, arguments.target, arguments.experiment))
