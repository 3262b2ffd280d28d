"""Trees of image files: ImageNet and everything that is laid out like it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from et.errors import UserError
from et.inpainting.patches import pair
from et.record import USER_DATA

EXTENSIONS = {".jpeg", ".jpg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def list_images(folder: str | Path) -> list[Path]:
    """All image files below ``folder``, sorted.

    Raises:
        UserError: there is no such folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    if not images:
        raise UserError(f"there is no image in {folder} (looked for {', '.join(sorted(EXTENSIONS))})")
    return images


def open_image(path: Path) -> Image.Image:
    """The image as RGB.

    Raises:
        UserError: the file is no image, or is damaged.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UserError(f"cannot read the image {path}: {error}; replace the file or remove it") from error


@contextmanager
def seeded(rng: np.random.Generator) -> Iterator[None]:
    """Let the global generators, which timm's transforms use, draw from ``rng`` and put them back afterwards."""
    state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        random.seed(int(rng.integers(2**63)))
        torch.manual_seed(int(rng.integers(2**63)))
        try:
            yield
        finally:
            random.setstate(state)


class ImageFolders:
    """Two folders of images, one to train on and one to evaluate on, through timm's transforms.

    Args:
        root: folder that holds both.
        image_size: height and width, or one number for both.
        train, evaluation: names of the two folders below ``root``; no ``train`` for evaluation alone.
        name: what the run's record calls the data.
        expected: numbers of training and evaluation images of the published data; a tree of other numbers is recorded
            as a variant. None: the images are the user's own.
        address: where the data comes from, for the message when it is absent.
        augmentation: arguments of ``timm.data.create_transform`` for training (table 4).
        crop_pct: share of the shorter side that the centre crop of evaluation keeps.
        keep_in_memory: read every file once a process and keep what was decoded: training images whole, at three bytes
            a pixel, evaluation images as the network sees them.
    """

    def __init__(
        self,
        root: str,
        image_size: int | tuple[int, int],
        train: str | None = "train",
        evaluation: str = "val",
        name: str = "imagefolder",
        expected: tuple[int, int] | None = None,
        address: str = "",
        augmentation: dict[str, Any] | None = None,
        crop_pct: float = 0.875,
        keep_in_memory: bool = False,
    ):
        from timm.data import create_transform

        self.name, self.root = name, Path(root)
        for part in (train, evaluation):
            if part is not None and not (self.root / part).is_dir():
                source = f" It comes from {address}." if address else ""
                raise UserError(
                    f"the images of {name!r} belong in {self.root / part}, which is not there.{source} "
                    "Put the images there (any folders below it), or set paths.data / ET_DATA_DIR to the data root"
                )
        self.train_files = list_images(self.root / train) if train else []
        self.eval_files = list_images(self.root / evaluation)
        self.train_length, self.eval_length = len(self.train_files), len(self.eval_files)
        numbers = (self.train_length, self.eval_length)
        if expected is None:
            self.variant = USER_DATA
        else:
            self.variant = "exact" if tuple(expected) == numbers else f"{numbers[0]} + {numbers[1]} images"
        size = pair(image_size)
        self.train_transform = create_transform((3, *size), is_training=True, **(augmentation or {}))
        self.eval_transform = create_transform((3, *size), is_training=False, crop_pct=crop_pct)

        self.kept_train: dict[int, np.ndarray] | None = {} if keep_in_memory else None
        self.kept_eval: dict[int, Tensor] | None = {} if keep_in_memory else None

    def train_item(self, index: int, rng: np.random.Generator) -> Tensor:
        """Training image ``index``, augmented, (3, H, W) float32, normalised."""
        if self.kept_train is None:
            image = open_image(self.train_files[index])
        else:
            if index not in self.kept_train:
                self.kept_train[index] = np.asarray(open_image(self.train_files[index]))
            image = Image.fromarray(self.kept_train[index])
        with seeded(rng):
            return self.train_transform(image)

    def eval_item(self, index: int) -> Tensor:
        """Evaluation image ``index``, (3, H, W) float32, normalised."""
        if self.kept_eval is None:
            return self.eval_transform(open_image(self.eval_files[index]))
        if index not in self.kept_eval:
            self.kept_eval[index] = self.eval_transform(open_image(self.eval_files[index]))
        return self.kept_eval[index]

    def describe(self) -> dict[str, object]:
        """Sizes, and a hash of all file names and lengths (the pixels would take minutes for ImageNet)."""
        digest = hashlib.sha256()
        for path in (*self.train_files, *self.eval_files):
            digest.update(f"{path.relative_to(self.root)} {path.stat().st_size}\n".encode())
        return {
            "name": self.name, "variant": self.variant, "sha256": digest.hexdigest(),
            "train_images": self.train_length, "evaluation_images": self.eval_length,
        }  # fmt: skip
