"""The authors' published image checkpoint (one npz of named arrays) in this project's form."""

from __future__ import annotations

from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from et.errors import UserError

KEYS = (
    "Wk",
    "Wq",
    "Xi",
    "Wenc",
    "Benc",
    "Wdec",
    "Bdec",
    "LNORM_gamma",
    "LNORM_bias",
    "CLS_token",
    "MASK_token",
    "POS_embed",
)


def read_official(path: str | Path) -> dict[str, Tensor]:
    """The arrays of a published checkpoint, float32.

    Raises:
        UserError: the file is absent, no npz of plain arrays, or lacks an array.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = [key for key in KEYS if key not in arrays.files]
            if missing:
                raise UserError(f"{path} is no checkpoint of the authors' image model: it lacks {', '.join(missing)}")
            return {key: torch.from_numpy(np.asarray(arrays[key], dtype=np.float32)) for key in KEYS}
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as an npz of plain arrays: {error}") from error


def model_arguments(arrays: dict[str, Tensor], channels: int = 3) -> dict[str, Any]:
    """Arguments of :class:`InpaintingET` that fit the arrays; patches and images are taken to be square.

    Raises:
        UserError: the number of patches or of their pixels is no square.
    """
    heads, head_dim, dim = arrays["Wk"].shape
    patches, pixels = len(arrays["POS_embed"]) - 1, len(arrays["Wenc"])
    side, patch = isqrt(patches), isqrt(pixels // channels)
    if side * side != patches or patch * patch * channels != pixels:
        raise UserError(
            f"{patches} patches of {pixels} values are no square image of square {channels}-channel patches"
        )
    return {
        "image_size": side * patch, "patch_size": patch, "channels": channels, "dim": dim, "num_heads": heads,
        "head_dim": head_dim, "num_memories": arrays["Xi"].shape[1], "fidelity": "released",
    }  # fmt: skip


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
