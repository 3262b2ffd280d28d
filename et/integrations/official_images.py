"""The authors' published image models in this project's form.

Three forms are read, none of which executes code:

- npz: the arrays of :data:`KEYS` by name (``plaindict_ckpt.npz`` of the JAX code);
- Flax: the msgpack tree that the JAX training writes (``checkpoint.ckpt``, ``checkpoint_STEP``);
- PyTorch: the state dictionary of the PyTorch port (``model.pth``) with ``model_config.txt`` beside it, or a checkpoint
  of its training.
"""

from __future__ import annotations

import argparse
import ast
import pickle
import re
import zipfile
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from et.inpainting.pixels import MEAN, STD
from et.integrations.flax_file import read_flax, take
from et.runs.identity import config_of
from et.utils.errors import UserError

# Names of the arrays in the npz, and where a Flax checkpoint has them.
FLAX_NAMES = {
    "Wk": "backbone/block/attn/Wk",
    "Wq": "backbone/block/attn/Wq",
    "Xi": "backbone/block/chn/kernel",
    "Wenc": "backbone/encoder/kernel",
    "Benc": "backbone/encoder/bias",
    "Wdec": "decoder/kernel",
    "Bdec": "decoder/bias",
    "LNORM_gamma": "backbone/norm/gamma",
    "LNORM_bias": "backbone/norm/bias",
    "CLS_token": "backbone/cls_token",
    "MASK_token": "backbone/mask_token",
    "POS_embed": "backbone/pos_embed",
}
KEYS = tuple(FLAX_NAMES)

PORT = "the authors' PyTorch port"
# What the port normalises images by, channel by channel; this project's models take ImageNet's mean and deviation.
PORT_SCALES = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
# Names of a block of the port, and of this project's; biases are there on request.
PORT_BLOCK = {
    "0.gamma": "norm.gamma",
    "0.bias": "norm.delta",
    "1.attn.wq": "attention.w_query",
    "1.attn.wk": "attention.w_key",
    "1.attn.bq": "attention.b_query",
    "1.attn.bk": "attention.b_key",
    "1.hn.proj.weight": "hopfield.memories",
    "1.hn.proj.bias": "hopfield.bias",
}


def load_official(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments and state of the :class:`InpaintingET` that a published file holds, whichever of the forms it has.

    Raises:
        UserError: The file is absent or damaged, would execute code, or holds another model.
    """
    path = Path(path)
    if _is_torch_file(path):
        weights, settings = read_port(path)
        arguments = port_arguments(weights, settings, path)
        return arguments, port_state(weights, arguments, settings)
    arrays = read_official(path)
    return model_arguments(arrays), state_dict(arrays)


def read_official(path: str | Path) -> dict[str, Tensor]:
    """The arrays of a published npz or Flax checkpoint, float32.

    Raises:
        UserError: The file is absent, neither an npz of plain arrays nor a Flax checkpoint, or lacks an array.
    """
    path = Path(path)
    kind = "the authors' image model"
    if path.exists() and not zipfile.is_zipfile(path):
        return {key: array.float() for key, array in take(read_flax(path), FLAX_NAMES, path, kind).items()}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = [key for key in KEYS if key not in arrays.files]
            if missing:
                raise UserError(f"{path} is not a checkpoint of {kind}: it lacks {', '.join(missing)}")
            return {key: torch.from_numpy(np.asarray(arrays[key], dtype=np.float32)) for key in KEYS}
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as an npz of plain arrays: {error}") from error


def model_arguments(arrays: dict[str, Tensor], channels: int = 3) -> dict[str, Any]:
    """Arguments of :class:`InpaintingET` that fit the arrays; patches and images are taken to be square.

    Raises:
        UserError: The number of patches or of their pixels is no square.
    """
    heads, head_dim, dim = arrays["Wk"].shape
    return {
        **_square(len(arrays["POS_embed"]) - 1, len(arrays["Wenc"]), channels), "dim": dim, "num_heads": heads,
        "head_dim": head_dim, "num_memories": arrays["Xi"].shape[1], "fidelity": "released",
    }  # fmt: skip


def _square(patches: int, pixels: int, channels: int) -> dict[str, int]:
    """Sizes of a square image of ``patches`` square patches of ``pixels`` values."""
    side, patch = isqrt(patches), isqrt(pixels // channels)
    if side * side != patches or patch * patch * channels != pixels:
        raise UserError(
            f"{patches} patches of {pixels} values do not make a square image of square {channels}-channel patches"
        )
    return {"image_size": side * patch, "patch_size": patch, "channels": channels}


def state_dict(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """State of :class:`InpaintingET` with the published weights (the published matrices act from the right)."""
    heads, head_dim, _ = arrays["Wk"].shape
    return {
        "encoder.weight": arrays["Wenc"].T.contiguous(),
        "encoder.bias": arrays["Benc"],
        "decoder.weight": arrays["Wdec"].T.contiguous(),
        "decoder.bias": arrays["Bdec"],
        "cls_token": arrays["CLS_token"],
        "mask_token": arrays["MASK_token"],
        "position": arrays["POS_embed"],
        "block.norm.gamma": arrays["LNORM_gamma"].reshape(()),
        "block.norm.delta": arrays["LNORM_bias"],
        "block.attention.w_key": arrays["Wk"],
        "block.attention.w_query": arrays["Wq"],
        "block.attention.beta": torch.full((heads,), head_dim**-0.5),
        "block.hopfield.memories": arrays["Xi"].T.contiguous(),
    }


def _is_torch_file(path: Path) -> bool:
    """True for a file of ``torch.save``, of today's or of the older kind."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[-1] == "data.pkl" for name in archive.namelist())
    return path.is_file() and path.open("rb").read(4) == b"\x80\x02\x8a\n"


def read_port(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and settings of the PyTorch port.

    Args:
        path: Its state dictionary, with ``model_config.txt`` beside it, or a checkpoint of its training.

    Raises:
        UserError: The file holds more than tensors and settings, or there are no settings.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        foreign = re.search(r"[Uu]nsupported (?:global: )?GLOBAL ([\w.]+)", str(error))
        if foreign or isinstance(error, pickle.UnpicklingError):
            what = foreign[1] if foreign else "more than tensors"
            raise UserError(f"{path} is not read: it holds {what}, which may execute code") from error
        raise UserError(
            f"{path} is a damaged file of torch.save ({type(error).__name__}): download it again"
        ) from error
    if isinstance(saved, Mapping) and "model" in saved:
        return dict(saved["model"]), vars(saved["args"]) if "args" in saved else _config_beside(path)
    if not isinstance(saved, Mapping) or not all(isinstance(value, Tensor) for value in saved.values()):
        raise UserError(f"{path} is not a checkpoint of {PORT}: it holds no dictionary of weights")
    return dict(saved), _config_beside(path)


def _config_beside(path: Path) -> dict[str, Any]:
    """The dictionary in model_config.txt, which holds Python literals and nothing that runs."""
    file = path.parent / "model_config.txt"
    try:
        settings = ast.literal_eval(file.read_text())
    except OSError as error:
        raise UserError(
            f"{path} does not say with which steps it runs: put the authors' model_config.txt beside it"
        ) from error
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise UserError(f"{file} is not a dictionary of plain values") from error
    if not isinstance(settings, dict):
        raise UserError(f"{file} is not a dictionary of plain values")
    return settings


def port_arguments(
    weights: dict[str, Tensor], settings: dict[str, Any], path: Path, channels: int = 3
) -> dict[str, Any]:
    """Arguments of :class:`InpaintingET` that fit the port's weights and settings.

    Raises:
        UserError: A weight or a setting is missing, there is one too many, or the model completes no images.
    """
    blocks = 1 + max((int(found[1]) for name in weights if (found := re.match(r"blocks\.(\d+)\.", name))), default=0)
    expected = set(_port_names(blocks))
    optional = {name for name in expected if name.endswith((".bq", ".bk", ".proj.bias"))}
    if missing := sorted(expected - optional - weights.keys()):
        raise UserError(f"{path} is not a checkpoint of {PORT}: it lacks {', '.join(missing)}")
    if others := sorted(weights.keys() - expected):
        raise UserError(f"{path} is not a checkpoint of {PORT}: it has {', '.join(others)} in addition")
    if missing := [name for name in ("time_steps", "alpha") if settings.get(name) is None]:
        raise UserError(f"the settings of {path} lack {', '.join(missing)}")
    heads, head_dim, dim = weights["blocks.0.1.attn.wq"].shape
    pixels, outputs = weights["encode.0.weight"].shape[1], len(weights["decode.1.weight"])
    if outputs != pixels:
        raise UserError(f"{path} completes no images: it has {outputs} outputs for patches of {pixels} values")
    return {
        **_square(weights["pos.weight"].shape[1] - 1, pixels, channels), "dim": dim, "num_heads": heads,
        "head_dim": head_dim, "num_memories": len(weights["blocks.0.1.hn.proj.weight"]),
        "steps": int(settings["time_steps"]), "step_size": float(settings["alpha"]), "fidelity": "released",
        "num_blocks": blocks,
        "decoder_norm_eps": float(dim),  # the port hands the dimension to LayerNorm where its eps belongs
        "block": {
            "beta": settings.get("attn_beta"), "attention_bias": "blocks.0.1.attn.bq" in weights,
            "hopfield_bias": "blocks.0.1.hn.proj.bias" in weights,
        },
    }  # fmt: skip


def _port_names(blocks: int) -> dict[str, str]:
    """Names of the port's weights, and this project's."""
    names = {
        "encode.0.weight": "encoder.weight", "encode.0.bias": "encoder.bias",
        "decode.0.weight": "decoder_norm.weight", "decode.0.bias": "decoder_norm.bias",
        "decode.1.weight": "decoder.weight", "decode.1.bias": "decoder.bias",
        "pos.weight": "position", "cls": "cls_token", "mask": "mask_token",
    }  # fmt: skip
    for number in range(blocks):
        own = "block" if number == 0 else f"later_blocks.{number - 1}"
        names |= {f"blocks.{number}.{theirs}": f"{own}.{ours}" for theirs, ours in PORT_BLOCK.items()}
    return names


def port_state(weights: dict[str, Tensor], arguments: dict[str, Any], settings: dict[str, Any]) -> dict[str, Tensor]:
    """State of the :class:`InpaintingET` of ``arguments`` with the port's weights.

    Encoder and decoder take up the difference between the port's normalisation of images and this project's.
    """
    heads, blocks = arguments["num_heads"], arguments["num_blocks"]
    state = {ours: weights[theirs] for theirs, ours in _port_names(blocks).items() if theirs in weights}
    state["position"] = state["position"][0]
    beta = arguments["block"]["beta"] or arguments["head_dim"] ** -0.5
    for name in list(state):
        if name.endswith(("cls_token", "mask_token")):
            state[name] = state[name].flatten()
        elif name.endswith("gamma"):
            state[name] = state[name].reshape(())
        elif name.endswith(("b_query", "b_key")):  # the port's heads share them
            state[name] = state[name].expand(heads, -1).contiguous()
        elif name.endswith("w_query"):
            state[name.replace("w_query", "beta")] = torch.full((heads,), beta, dtype=state[name].dtype)
    scales = PORT_SCALES.get(str(settings.get("data_name")).lower())
    return state if scales is None else _renormalised(state, *scales)


def _renormalised(state: dict[str, Tensor], mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Tensor]:
    """The same model for images that are normalised by ImageNet's mean and deviation instead of these."""
    weight, out = state["encoder.weight"], state["decoder.weight"]
    values = (torch.tensor(channels, dtype=torch.float64) for channels in (mean, std, MEAN, STD))
    # One number per pixel of a patch, which are laid out (channel, row, column).
    mean, std, own_mean, own_std = (value.repeat_interleave(weight.shape[1] // len(value)) for value in values)
    shift, scale = (own_mean - mean) / std, own_std / std
    changed = {
        "encoder.weight": weight * scale,
        "encoder.bias": state["encoder.bias"] + weight.double() @ shift,
        "decoder.weight": out / scale[:, None],
        "decoder.bias": (state["decoder.bias"] - shift) / scale,
    }
    return state | {name: value.to(weight.dtype) for name, value in changed.items()}


def resize_positions(position: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position biases for another grid of patches, by bicubic interpolation; the first one, of CLS, is kept.

    Args:
        position: (1 + N, D), of a square grid of N patches.
        grid: Rows and columns wanted; that of ``position`` returns it as it is.

    Returns:
        (1 + rows * columns, D).
    """
    side = isqrt(len(position) - 1)
    if (side, side) == tuple(grid):
        return position
    from timm.layers import resample_abs_pos_embed

    return resample_abs_pos_embed(position[None], list(grid), [side, side])[0]


def published_config(arrays: dict[str, Tensor]) -> dict[str, Any]:
    """The resolved configuration that published weights are evaluated with, on the embedded photographs by default."""
    arguments = model_arguments(arrays)
    patches = len(arrays["POS_embed"]) - 1
    sizes = {f"model.{name}": arguments[name] for name in ("dim", "num_heads", "head_dim", "num_memories")}
    settings = {
        "name": "pretrained", "fidelity": "released", "checkpoint": "last", "trainer": "default",
        "data.image_size": arguments["image_size"], "data.patch_size": arguments["patch_size"],
        "data.num_occluded": round(patches * 100 / 196), "data.num_kept": round(patches * 10 / 196),
        "data.batch_size": 32, "trainer.precision": "32-true", "model.block.beta": "null", **sizes,
    }  # fmt: skip
    overrides = (f"{key}={value}" for key, value in settings.items())
    return config_of(["experiment=imagenet_inpainting", "data=photos", *overrides])
