"""Conversion between images and patches, and random masks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from et.core.arguments import check_sizes


def pair(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """(height, width) of a size that is one number or two."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def grid_shape(image_size: int | tuple[int, int], patch_size: int | tuple[int, int]) -> tuple[int, int]:
    """Number of rows and columns of patches.

    Raises:
        ValueError: The image is not a multiple of the patch, or one of the two is empty.
    """
    (height, width), (patch_h, patch_w) = pair(image_size), pair(patch_size)
    check_sizes(image_size=min(height, width), patch_size=min(patch_h, patch_w))
    if height % patch_h or width % patch_w:
        raise ValueError(f"image size {height} x {width} is not a multiple of the patch size {patch_h} x {patch_w}")
    return height // patch_h, width // patch_w


def patchify(images: Tensor, patch_size: int | tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, N, P): patches row by row, each flattened as (channel, row, column)."""
    patch_h, patch_w = pair(patch_size)
    rows, columns = grid_shape(images.shape[-2:], patch_size)
    batch, channels = images.shape[:2]
    tiles = images.reshape(batch, channels, rows, patch_h, columns, patch_w)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * patch_h * patch_w)


def unpatchify(patches: Tensor, patch_size: int | tuple[int, int], image_size: int | tuple[int, int]) -> Tensor:
    """(B, N, P) -> (B, C, H, W), the inverse of :func:`patchify`."""
    (patch_h, patch_w), (height, width) = pair(patch_size), pair(image_size)
    rows, columns = grid_shape(image_size, patch_size)
    tiles = patches.reshape(patches.shape[0], rows, columns, -1, patch_h, patch_w)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(patches.shape[0], -1, height, width)


def fill(images: Tensor, prediction: Tensor, masked: Tensor, patch_size: int | tuple[int, int]) -> Tensor:
    """``images`` (B, C, H, W) whose masked patches (B, N) are replaced by ``prediction`` (B, N, P)."""
    patches = patchify(images, patch_size)
    filled = torch.where(masked[..., None], prediction.to(patches.dtype), patches)
    return unpatchify(filled, patch_size, images.shape[-2:])


def hide(images: Tensor, masked: Tensor, patch_size: tuple[int, int], grey: float = 0.5) -> Tensor:
    """Pixels 0 .. 1 (B, C, H, W) with the masked patches (B, N) painted grey."""
    return fill(images, images.new_tensor(grey), masked, patch_size)


def join_tiles(tiles: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tiles (rows * columns, C, H, W), row by row, as one picture (C, rows * H, columns * W)."""
    return tiles.unflatten(0, grid).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)


def draw_masks(rng: np.random.Generator, num_patches: int, num_occluded: int, num_kept: int) -> tuple[Tensor, Tensor]:
    """Choose the occluded patches and the part of them that stays visible (appendix B: 100 of 196, of which 10
    visible).

    Args:
        rng: Random generator.
        num_patches: Number of patches N.
        num_occluded: Number of patches in the loss.
        num_kept: Number of occluded patches that the network sees unmasked.

    Returns:
        (occluded, masked), both (N,) bool: the patches of the loss, and those replaced by the MASK token.
    """
    order = torch.from_numpy(rng.permutation(num_patches))
    occluded, masked = torch.zeros(2, num_patches, dtype=torch.bool)
    occluded[order[:num_occluded]] = True
    masked[order[num_kept:num_occluded]] = True
    return occluded, masked


def mask_first_patch(masked: Tensor, occluded: Tensor) -> Tensor:
    """Masks of the authors' released training.

    It searches as many masked patches as are occluded. Occluded patches that stay visible are missing there, and patch
    0 takes their place.

    Args:
        masked: Patches to be replaced by the MASK token, (B, N) bool.
        occluded: Patches of the loss, (B, N) bool.

    Returns:
        ``masked`` with patch 0 set in every image with fewer masked than occluded patches, (B, N) bool.
    """
    masked = masked.clone()
    masked[:, 0] |= masked.sum(1) < occluded.sum(1)
    return masked
