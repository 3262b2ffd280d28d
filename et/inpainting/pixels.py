"""Normalisation of pixels by ImageNet's channel mean and deviation (appendix B), and its inverse."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalise(image: np.ndarray) -> Tensor:
    """(H, W, 3) in 0 .. 255 -> (3, H, W) float32 with mean 0 and deviation 1 on ImageNet."""
    scaled = np.asarray(image, dtype=np.float32) / np.float32(255)
    return torch.from_numpy(((scaled - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1).copy())


def to_pixels(images: Tensor) -> Tensor:
    """Inverse of the normalisation, clipped to 0 .. 1: (..., 3, H, W)."""
    mean, std = (torch.tensor(v, dtype=images.dtype, device=images.device)[:, None, None] for v in (MEAN, STD))
    return (images * std + mean).clamp(0, 1)


def from_pixels(pixels: Tensor) -> Tensor:
    """(..., 3, H, W) in 0 .. 1 -> normalised, the inverse of :func:`to_pixels` up to its clipping."""
    mean, std = (torch.tensor(v, dtype=pixels.dtype, device=pixels.device)[:, None, None] for v in (MEAN, STD))
    return (pixels - mean) / std
