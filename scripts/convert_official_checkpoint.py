"""Convert the authors' published ImageNet weights: python scripts/convert_official_checkpoint.py IN.npz OUT.ckpt

The result is what evaluate.py reads: python evaluate.py run=OUT.ckpt images=FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

from et.cli import exit_on_user_error


def convert(source: Path, target: Path) -> None:
    """Write ``target``: the weights under the names of this project, and the configuration they run with."""
    import torch
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from et.inpainting.official import model_arguments, read_official, state_dict

    arrays = read_official(source)
    arguments = model_arguments(arrays)
    with initialize_config_dir(str(Path(__file__).resolve().parents[1] / "conf"), version_base="1.3"):
        cfg = compose("train", ["experiment=imagenet_inpainting", "trainer=default", "fidelity=released"])
    cfg.name = "official_checkpoint"
    cfg.data.image_size, cfg.data.patch_size = arguments.pop("image_size"), arguments.pop("patch_size")
    patches = len(arrays["POS_embed"]) - 1
    cfg.data.num_occluded, cfg.data.num_kept = round(patches * 100 / 196), round(patches * 10 / 196)
    cfg.data.batch_size, cfg.model.block.beta = 32, None
    for name in ("dim", "num_heads", "head_dim", "num_memories"):
        cfg.model[name] = arguments[name]
    weights = {f"network.{name}": value for name, value in state_dict(arrays).items()}
    torch.save({"state_dict": weights, "config": OmegaConf.to_container(cfg, resolve=True)}, target)
    print(f"{target}: {sum(value.numel() for value in weights.values()):,} numbers")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the authors' npz")
    parser.add_argument("target", type=Path, help="checkpoint to write")
    arguments = parser.parse_args()
    exit_on_user_error(lambda: convert(arguments.source, arguments.target))
