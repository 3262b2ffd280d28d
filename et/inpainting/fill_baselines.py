"""Trivial completions of masked patches, as reference points for the metrics."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_fill(patches: Tensor, masked: Tensor, channels: int) -> Tensor:
    """Replace every masked patch by the mean colour of the image's visible pixels.

    Args:
        patches: Patches flattened as (channel, row, column), (B, N, P).
        masked: Mask of the patches to fill, (B, N) bool. An image without a visible patch is filled with 0.
        channels: Number of channels C.

    Returns:
        (B, N, P), with visible patches unchanged.
    """
    colour = patches.unflatten(-1, (channels, -1))
    visible = (~masked).to(patches.dtype)
    count = visible.sum(1).clamp(min=1)[:, None]
    mean = (colour.mean(-1) * visible[..., None]).sum(1) / count
    filled = mean[:, None, :, None].expand_as(colour).flatten(-2)
    return torch.where(masked[..., None], filled, patches)


def nearest_fill(patches: Tensor, masked: Tensor, grid: tuple[int, int]) -> Tensor:
    """Replace every masked patch by a copy of the nearest visible one (Euclidean; the first in row order among equals).

    Args:
        patches: Patches, row by row on ``grid``, (B, N, P).
        masked: Mask of the patches to fill, (B, N) bool. An image without a visible patch is filled with 0.
        grid: Number of rows and columns.

    Returns:
        (B, N, P), with visible patches unchanged.
    """
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    place = torch.stack([rows.flatten(), columns.flatten()], -1).to(patches.device, torch.float32)
    distance = torch.cdist(place, place)[None].expand(len(patches), -1, -1)
    distance = distance.masked_fill(masked[:, None, :], torch.inf)
    nearest = distance.argmin(-1)
    copies = torch.gather(patches, 1, nearest[..., None].expand_as(patches))
    copies = copies * (~masked).any(1)[:, None, None]
    return torch.where(masked[..., None], copies, patches)
