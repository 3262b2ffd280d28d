"""Photographs of any size, fitted to a model that takes one: a centre crop, or tiles that cover the whole."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from et.inpainting.folders import open_image
from et.inpainting.patches import draw_masks, join_tiles
from et.inpainting.pixels import normalise
from et.training.sampler import sample_rng
from et.utils.errors import UserError

Fit = Literal["crop", "tile"]
PAINTED = 127  # a mask image hides the patches in which a pixel is brighter


@dataclass(frozen=True)
class Canvas:
    """A photograph as tiles of the model's size.

    Attributes:
        name: What its output is called.
        tiles: (K, C, H, W), normalised, row by row on ``grid``.
        masked: (K, N) bool, the hidden patches.
        grid: Rows and columns of tiles.
        size: Height and width without the padding of the last tiles.
    """

    name: str
    tiles: Tensor
    masked: Tensor
    grid: tuple[int, int]
    size: tuple[int, int]

    def join(self, tiles: Tensor) -> Tensor:
        """Tiles (K, C, H, W) as one picture without padding, (C, height, width)."""
        return join_tiles(tiles, self.grid)[:, : self.size[0], : self.size[1]]


def fit_image(image: Image.Image, size: tuple[int, int], fit: Fit, resample: int = Image.BICUBIC) -> Image.Image:
    """``crop``: resized until it just covers ``size`` = (height, width), then cut at the centre; ``tile``: as it is."""
    height, width = size
    if fit == "tile" or (image.height, image.width) == (height, width):
        return image
    scale = max(height / image.height, width / image.width)
    wide, high = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    left, top = (wide - width) // 2, (high - height) // 2
    return image.resize((wide, high), resample).crop((left, top, left + width, top + height))


def cut_tiles(array: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """(H, W, C) -> (K, h, w, C) row by row, the image padded by reflection to whole tiles; and the grid of tiles."""
    rows, columns = (ceil(side / tile) for side, tile in zip(array.shape[:2], size, strict=True))
    missing = rows * size[0] - array.shape[0], columns * size[1] - array.shape[1]
    padded = np.pad(array, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric")
    tiles = padded.reshape(rows, size[0], columns, size[1], -1).swapaxes(1, 2)
    return tiles.reshape(rows * columns, *size, -1), (rows, columns)


def make_canvas(
    name: str,
    image: Image.Image,
    network: torch.nn.Module,
    mask: str = "random",
    ratio: float = 0.5,
    fit: Fit = "crop",
    seed: int = 0,
) -> Canvas:
    """Fit a photograph to ``network`` and choose the patches to hide.

    Args:
        name: What its output is called.
        image: RGB, of any size.
        network: An image model; its ``image_size``, ``patch_size`` and ``grid`` count.
        mask: ``random`` patches of every tile, a centred ``block`` of the photograph, or the path of a mask image.
        ratio: Share of the patches that ``random`` and ``block`` hide.
        fit: ``crop`` or ``tile``, see :func:`fit_image`.
        seed: Of random masks.

    Raises:
        UserError: Nothing would be hidden, or the mask image cannot be read.
    """
    fitted = fit_image(image, network.image_size, fit)
    pixels, grid = cut_tiles(np.asarray(fitted), network.image_size)
    size = fitted.height, fitted.width
    patches = grid[0] * network.grid[0], grid[1] * network.grid[1]
    if mask == "random":
        count = round(ratio * network.num_patches)
        draws = [draw_masks(sample_rng(seed, 0, tile), network.num_patches, count, 0)[1] for tile in range(len(pixels))]
        # Patches in the padding of the last tiles are not of the photograph.
        masked = torch.stack(draws) & _split(_covered(size, network.patch_size, patches), grid)
    elif mask == "block":
        masked = _split(_centred_block(size, network.patch_size, ratio, patches), grid)
    else:
        masked = _split(_drawn(Path(mask), image.size, network, fit), grid)
    if not masked.any():
        raise UserError(f"{name}: the mask {mask} hides no patch; hide more (--ratio), or paint the mask image white")
    return Canvas(name, torch.stack([normalise(tile) for tile in pixels]), masked, grid, size)


def _split(masked: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """Hidden patches of the whole, (rows, columns), as those of each tile, (K, N)."""
    rows, columns = masked.shape[0] // grid[0], masked.shape[1] // grid[1]
    tiles = masked.reshape(grid[0], rows, grid[1], columns).swapaxes(1, 2)
    return torch.from_numpy(tiles.reshape(grid[0] * grid[1], rows * columns).copy())


def _covered(size: tuple[int, int], patch: tuple[int, int], patches: tuple[int, int]) -> np.ndarray:
    """Patches that the photograph touches, (rows, columns)."""
    covered = np.zeros(patches, dtype=bool)
    covered[: ceil(size[0] / patch[0]), : ceil(size[1] / patch[1])] = True
    return covered


def _centred_block(size: tuple[int, int], patch: tuple[int, int], ratio: float, patches: tuple[int, int]) -> np.ndarray:
    """A block at the centre with about ``ratio`` of the photograph's patches, and its shape."""
    masked = np.zeros(patches, dtype=bool)
    whole = [ceil(side / step) for side, step in zip(size, patch, strict=True)]
    block = [min(side, round(side * sqrt(ratio))) for side in whole]
    top, left = ((side - part) // 2 for side, part in zip(whole, block, strict=True))
    masked[top : top + block[0], left : left + block[1]] = True
    return masked


def _drawn(path: Path, size: tuple[int, int], network: torch.nn.Module, fit: Fit) -> np.ndarray:
    """Patches that a mask image paints, (rows, columns); ``size`` is (width, height) of the photograph."""
    painted = np.asarray(open_image(path, behind="black").convert("L")) > PAINTED
    # A pixel of the smaller picture is painted if any of those that it covers is: a thin stroke must not vanish.
    picture = Image.fromarray(painted.astype(np.float32))
    if picture.size != size:
        picture = picture.resize(size, Image.BOX)
    fitted = np.asarray(fit_image(picture, network.image_size, fit, Image.BOX)) > 0
    height, width = network.patch_size
    missing = [-side % step for side, step in zip(fitted.shape, network.image_size, strict=True)]
    whole = np.pad(fitted, ((0, missing[0]), (0, missing[1])))
    return whole.reshape(whole.shape[0] // height, height, whole.shape[1] // width, width).any(axis=(1, 3))
