"""Trivial ways to fill masked patches: what any model has to beat."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_fill(patches: Tensor, masked: Tensor, channels: int) -> Tensor:
    """Every masked patch becomes the mean colour of the image's visible pixels.

    Args:
        patches: (B, N, P), flattened as (channel, row, column).
        masked: (B, N) bool; an image without a visible patch is filled with 0.
        channels: C.

    Returns:
        (B, N, P), visible patches as they were.
    """
    colour = patches.unflatten(-1, (channels, -1))
    visible = (~masked).to(patches.dtype)
    count = visible.sum(1).clamp(min=1)[:, None]
    mean = (colour.mean(-1) * visible[..., None]).sum(1) / count
    filled = mean[:, None, :, None].expand_as(colour).flatten(-2)
    return torch.where(masked[..., None], filled, patches)


def nearest_fill(patches: Tensor, masked: Tensor, grid: tuple[int, int]) -> Tensor:
    """Every masked patch becomes a copy of the nearest visible one (Euclidean; of equals the first in row order).

    Args:
        patches: (B, N, P), row by row on ``grid`` = (rows, columns).
        masked: (B, N) bool; an image without a visible patch is filled with 0.

    Returns:
        (B, N, P), visible patches as they were.
    """
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    place = torch.stack([rows.flatten(), columns.flatten()], -1).to(patches.device, torch.float32)
    distance = torch.cdist(place, place)[None].expand(len(patches), -1, -1)
    distance = distance.masked_fill(masked[:, None, :], torch.inf)
    nearest = distance.argmin(-1)
    copies = torch.gather(patches, 1, nearest[..., None].expand_as(patches))
    copies = copies * (~masked).any(1)[:, None, None]
    return torch.where(masked[..., None], copies, patches)
