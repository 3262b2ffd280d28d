"""Photographs that ship inside scikit-image and scikit-learn: real images without a download."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image
from torch import Tensor

from et.core.arguments import check_sizes
from et.inpainting.patches import pair
from et.inpainting.pixels import normalise

TRAINING = (
    "astronaut", "coffee", "rocket", "hubble_deep_field", "retina", "motorcycle_left", "immunohistochemistry",
    "brick", "camera", "coins", "grass", "gravel", "moon", "china",
)  # fmt: skip
HELD_OUT = ("chelsea", "flower")


@cache
def load_photo(name: str) -> np.ndarray:
    """One photograph as (H, W, 3) uint8; a grey one gets three equal channels."""
    if name in ("china", "flower"):
        from sklearn.datasets import load_sample_image

        image = load_sample_image(f"{name}.jpg")
    else:
        from skimage import data

        image = data.stereo_motorcycle()[0] if name == "motorcycle_left" else getattr(data, name)()
    image = np.asarray(image)
    return np.ascontiguousarray(image[..., :3] if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2))


@cache
def photos_sha256() -> str:
    """Hash of the pixels of all photographs."""
    digest = hashlib.sha256()
    for name in (*TRAINING, *HELD_OUT):
        digest.update(load_photo(name).tobytes())
    return digest.hexdigest()


@cache
def levels_of(name: str, smallest: int) -> list[np.ndarray]:
    """:func:`pyramid` of a photograph, cached per process."""
    return pyramid(load_photo(name), smallest)


def pyramid(image: np.ndarray, smallest: int) -> list[np.ndarray]:
    """``image`` and its successive halvings (2 x 2 means) down to a shorter side of at least ``smallest`` pixels."""
    levels = [image]
    while min(levels[-1].shape[:2]) // 2 >= smallest:
        height, width = (side // 2 * 2 for side in levels[-1].shape[:2])
        blocks = levels[-1][:height, :width].reshape(height // 2, 2, width // 2, 2, 3).astype(np.float32)
        levels.append(blocks.mean(axis=(1, 3)).round().astype(np.uint8))
    return levels


def windows(image: np.ndarray, size: tuple[int, int]) -> list[np.ndarray]:
    """Non-overlapping windows of ``size`` = (height, width), row by row; the remainder is cropped."""
    height, width = size
    rows, columns = image.shape[0] // height, image.shape[1] // width
    return [
        image[r * height : (r + 1) * height, c * width : (c + 1) * width] for r in range(rows) for c in range(columns)
    ]


class Photos:
    """Random crops of the embedded photographs for training; held-out photographs, whole, for evaluation.

    A crop comes from a random photograph at a random level of its pyramid. It is flipped and rotated, and its colour
    channels are permuted and scaled: a dozen photographs do not generalise without this.

    Args:
        image_size: Height and width of a crop, or one number for both.
        crops_per_epoch: Number of crops per epoch.
        max_gain: Channels are scaled about the crop's mean by factors between 1/max_gain and max_gain.
        levels: Number of pyramid levels of a held-out photograph that are evaluated.
    """

    name, variant = "photos", "embedded photographs"

    def __init__(self, image_size: int | tuple[int, int], crops_per_epoch: int, max_gain: float = 1.5, levels: int = 2):
        self.size = pair(image_size)
        check_sizes(image_size=min(self.size), crops_per_epoch=crops_per_epoch, levels=levels)
        self.train_length, self.max_gain = crops_per_epoch, max_gain
        self.photos = [level for name in TRAINING for level in levels_of(name, 2 * max(self.size))]
        area = np.array([level.shape[0] * level.shape[1] for level in self.photos], dtype=float)
        self.weights = np.sqrt(area).cumsum() / np.sqrt(area).sum()
        self.layout = [(name, level) for name in HELD_OUT for level in levels_of(name, 2 * max(self.size))[:levels]]
        self.held_out = [window for _, image in self.layout for window in windows(image, self.size)]
        self.eval_length = len(self.held_out)

    def train_item(self, index: int, rng: np.random.Generator) -> Tensor:
        """A random crop, (3, H, W) float32, normalised."""
        photo = self.photos[int(np.searchsorted(self.weights, rng.random()))]
        height, width = self.size
        top, left = rng.integers(photo.shape[0] - height + 1), rng.integers(photo.shape[1] - width + 1)
        crop = photo[top : top + height, left : left + width].astype(np.float32)
        flips, turn = rng.integers(2, size=2), rng.integers(2)
        crop = crop[:: 1 - 2 * flips[0], :: 1 - 2 * flips[1]]
        if turn and height == width:
            crop = crop.transpose(1, 0, 2)
        crop = crop[..., rng.permutation(3)]
        gain = np.exp(rng.uniform(-1, 1, size=3) * np.log(self.max_gain)).astype(np.float32)
        mean = crop.mean(axis=(0, 1))
        shift = rng.uniform(-25, 25, size=3).astype(np.float32)
        return normalise(np.clip((crop - mean) * gain + mean + shift, 0, 255))

    def eval_item(self, index: int) -> Tensor:
        """Window ``index`` of the held-out photographs, (3, H, W) float32, normalised."""
        return normalise(self.held_out[index].astype(np.float32))

    def describe(self) -> dict[str, object]:
        """Names and a hash of the pixels, for the run's record."""
        return {
            "name": self.name, "variant": self.variant, "sha256": photos_sha256(), "train": list(TRAINING),
            "evaluation": list(HELD_OUT), "evaluation_images": self.eval_length,
        }  # fmt: skip


class WholePhotos:
    """Embedded photographs for evaluation, each resized and cut at its centre to one image.

    Args:
        image_size: Height and width of an image, or one number for both.
        names: Names of the photographs. If None, all, with those that :class:`Photos` holds out in the middle, which
            figure 4 shows.
    """

    name, variant, train_length = "whole_photos", "embedded photographs, centre crop", 0

    def __init__(self, image_size: int | tuple[int, int], names: Sequence[str] | None = None):
        self.size, self.eval_names = pair(image_size), list(names or (*TRAINING[:8], *HELD_OUT, *TRAINING[8:]))
        self.eval_length = len(self.eval_names)

    def train_item(self, index: int, rng: np.random.Generator) -> Tensor:
        raise NotImplementedError("these photographs are for evaluation only")

    def eval_item(self, index: int) -> Tensor:
        """Photograph ``index``, (3, H, W) float32, normalised."""
        from et.inpainting.canvas import fit_image

        image = Image.fromarray(load_photo(self.eval_names[index]))
        return normalise(np.asarray(fit_image(image, self.size, "crop")))

    def describe(self) -> dict[str, object]:
        """Names of the photographs."""
        return {"name": self.name, "variant": self.variant, "evaluation": self.eval_names}
