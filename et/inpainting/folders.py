"""Folders of image files: ImageNet and data in the same layout."""

from __future__ import annotations

import hashlib
import os
import random
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from et.core.arguments import check_sizes
from et.inpainting.patches import pair
from et.runs.record import COUNTS_ONLY, USER_DATA
from et.utils.errors import ArgumentsOf, UserError
from et.utils.files import MACHINE_ERRORS

EXTENSIONS = {".jpeg", ".jpg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
# Images that Pillow does not read without plugins.
OTHER_IMAGES = {".heic", ".heif", ".avif", ".jxl", ".svg", ".exr", ".raw", ".cr2", ".nef", ".dng"}
# Training and validation images of each class of Imagenette.
IMAGENETTE = {
    "n01440764": (963, 387), "n02102040": (955, 395), "n02979186": (993, 357), "n03000684": (858, 386),
    "n03028079": (941, 409), "n03394916": (956, 394), "n03417042": (961, 389), "n03425413": (931, 419),
    "n03445777": (951, 399), "n03888257": (960, 390),
}  # fmt: skip


@dataclass(frozen=True)
class Listing:
    """Image files below a folder.

    Attributes:
        files: Files that are read, sorted.
        skipped: Number of images of other types, by suffix.
    """

    files: list[Path]
    skipped: dict[str, int]


def list_images(folder: str | Path) -> Listing:
    """All image files below ``folder``. Links are followed; hidden files and folders are left out.

    Raises:
        UserError: The folder does not exist, has no image, or has a broken link.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    found = list(_files_below(folder, ()))
    images = sorted(path for path in found if path.suffix.lower() in EXTENSIONS)
    skipped = Counter(path.suffix.lower() for path in found if path.suffix.lower() in unread_extensions())
    if skipped:
        counts = ", ".join(f"{count} of type {suffix}" for suffix, count in sorted(skipped.items()))
        warnings.warn(
            f"{folder} has images that are not read: {counts}. Convert them to one of {', '.join(sorted(EXTENSIONS))}",
            stacklevel=2,
        )
    if not images:
        raise UserError(f"there is no image in {folder} (looked for {', '.join(sorted(EXTENSIONS))})")
    return Listing(images, dict(sorted(skipped.items())))


def _files_below(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """Files below ``folder``; ``above`` are the real paths of its parents, to detect links that lead back to them."""
    above = (*above, os.path.realpath(folder))
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if entry.is_dir():
                if os.path.realpath(path) not in above:
                    yield from _files_below(path, above)
            elif entry.is_file():
                yield path
            elif path.suffix.lower() in EXTENSIONS:
                raise UserError(f"{path} is a broken link: correct or remove it")


@cache
def unread_extensions() -> frozenset[str]:
    """Suffixes of image files that are not among :data:`EXTENSIONS`."""
    Image.init()
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return frozenset((known | OTHER_IMAGES) - EXTENSIONS - {".h5", ".hdf", ".mpg", ".mpeg"})


def open_image(path: Path, behind: str = "white") -> Image.Image:
    """Read an image as 8-bit RGB, rotated as its EXIF data say; transparent pixels get the colour ``behind``.

    Grey images with 16 bits, or with floats in 0 .. 1 or 0 .. 255, are scaled to 8 bits.

    Raises:
        UserError: The file is not an image, is damaged, or is larger than Pillow opens.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # about metadata that are not needed
            with Image.open(path) as image:
                return to_rgb(upright(image), behind)
    except Image.DecompressionBombError as error:
        raise UserError(f"the image {path} is too large ({error}): save it smaller, or remove it") from error
    except Exception as error:  # Pillow has errors of all kinds for files that are damaged
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in MACHINE_ERRORS:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot read the image {path}: {reason}; replace the file or remove it") from error


def upright(image: Image.Image) -> Image.Image:
    """``image`` rotated by its EXIF orientation; unchanged if there is none or it cannot be read."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # damaged metadata, which the pixels do not need
        return image
    return ImageOps.exif_transpose(image) if turned else image


def to_rgb(image: Image.Image, behind: str = "white") -> Image.Image:
    """``image`` as 8-bit RGB; transparent pixels get the colour ``behind``.

    Raises:
        ValueError: The values are in no known range.
    """
    if image.mode[0] in "IF":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, behind), image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey values (H, W) as uint8; floats in 0 .. 1 or 0 .. 255, integers in 0 .. 65,535 (32 bits: or 0 .. 255)."""
    low, high = values.min(), values.max()
    whole = values.dtype.kind in "iu"
    if whole:
        top = 255 if values.dtype.itemsize == 4 and high <= 255 else 65535
    else:
        top = 1 if high <= 1 else 255
    if not (low >= 0 and high <= top):  # NaN is in no range
        ranges = "0 .. 65,535" if whole else "0 .. 1 or 0 .. 255"
        raise ValueError(f"its values lie between {low} and {high}, those of an image in {ranges}")
    return (values * (255 / top)).round().astype(np.uint8)


@contextmanager
def seeded(rng: np.random.Generator) -> Iterator[None]:
    """Context in which the global generators, which timm's transforms use, draw from ``rng``; restored afterwards."""
    state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        random.seed(int(rng.integers(2**63)))
        torch.manual_seed(int(rng.integers(2**63)))
        try:
            yield
        finally:
            random.setstate(state)


class ImageFolders:
    """Two folders of images, one for training and one for evaluation, with timm's transforms.

    Args:
        root: Folder that holds both.
        image_size: Height and width, or one number for both.
        train, evaluation: Names of the two folders below ``root``. If ``train`` is None, only evaluation is possible.
        name: Name of the data in the run's record.
        expected: Numbers of training and evaluation images of the published data; other numbers are recorded as a
            variant. If None, the images are the user's own.
        address: Download address for the error message if the data are missing.
        augmentation: Arguments of ``timm.data.create_transform`` for training (table 4).
        crop_pct: Share of the shorter side that the centre crop of evaluation keeps; 1 keeps an image of the model's
            size as it is.
        crop_mode: How evaluation images are fitted, as timm has it: ``center`` resizes the shorter side and cuts out
            the centre; ``squash`` resizes both sides; ``border`` resizes the longer side and pads.
        keep_in_memory: If True, decode every file once per process and keep the result: whole training images at three
            bytes per pixel, and evaluation images as network inputs.
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
        augmentation: Annotated[dict[str, Any] | None, ArgumentsOf("timm.data.create_transform")] = None,
        crop_pct: float = 0.875,
        crop_mode: Literal["center", "squash", "border"] = "center",
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
        listings = {part: list_images(self.root / part) for part in (train, evaluation) if part is not None}
        self.train_files = listings[train].files if train is not None else []
        self.eval_files = listings[evaluation].files
        self.skipped = sum((Counter(listing.skipped) for listing in listings.values()), Counter())
        self.eval_names = [str(path.relative_to(self.root / evaluation)) for path in self.eval_files]
        self.train_length, self.eval_length = len(self.train_files), len(self.eval_files)
        self.variant = USER_DATA if expected is None else self.published_variant(tuple(expected), train, evaluation)
        size = pair(image_size)
        check_sizes(image_size=min(size))
        self.train_transform = create_transform((3, *size), is_training=True, **(augmentation or {}))
        self.eval_transform = create_transform((3, *size), is_training=False, crop_pct=crop_pct, crop_mode=crop_mode)
        self.kept_train: dict[int, np.ndarray] | None = {} if keep_in_memory else None
        self.kept_eval: dict[int, Tensor] | None = {} if keep_in_memory else None

    def published_variant(self, expected: tuple[int, int], train: str | None, evaluation: str) -> str:
        """Variant of folders with a published data set's name, by their numbers of images in total and per class."""
        numbers = (self.train_length, self.eval_length)
        counts = [
            Counter(path.relative_to(self.root / part).parts[0] for path in files)
            for part, files in ((train, self.train_files), (evaluation, self.eval_files))
            if part is not None
        ]
        if numbers != expected:
            variant = f"{numbers[0]} + {numbers[1]} images"
        elif has_published_classes(self.name, counts):
            return COUNTS_ONLY
        else:
            variant = f"{USER_DATA}, as many images as the published data in other classes"
        warnings.warn(f"{self.root} is not the published {self.name}: recorded as {variant!r}", stacklevel=3)
        return variant

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
        """Sizes, and a hash of all file names and lengths (hashing the pixels of ImageNet would take minutes)."""
        digest = hashlib.sha256()
        for path in (*self.train_files, *self.eval_files):
            digest.update(f"{path.relative_to(self.root)} {path.stat().st_size}\n".encode())
        return {
            "name": self.name, "variant": self.variant, "sha256": digest.hexdigest(),
            "train_images": self.train_length, "evaluation_images": self.eval_length,
            **({"skipped_images": dict(self.skipped)} if self.skipped else {}),
        }  # fmt: skip


def has_published_classes(name: str, counts: Sequence[Mapping[str, int]]) -> bool:
    """True if the class folders have as many images as those of Imagenette or ImageNet; True for other data sets.

    Args:
        name: Name of the data set.
        counts: Number of images by class folder, for training and for validation part.
    """
    if name == "imagenette":
        return all(part == {c: both[i] for c, both in IMAGENETTE.items()} for i, part in enumerate(counts))
    if name == "imagenet":
        train, val = counts
        return len(train) == 1000 and all(732 <= n <= 1300 for n in train.values()) and set(val.values()) == {50}
    return True
