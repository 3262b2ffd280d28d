"""Batches of images with the patches that are hidden in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from et.core.arguments import check_sizes
from et.inpainting.patches import draw_masks, grid_shape
from et.training.sampler import EpochSampler, per_process, sample_rng, whole_batches
from et.utils.errors import UserError


class ImageSource(Protocol):
    """Where images come from: :class:`et.inpainting.photos.Photos` or :class:`et.inpainting.folders.ImageFolders`.

    Images have 3 channels, unless there is an attribute ``channels``.
    """

    name: str
    train_length: int
    eval_length: int

    def train_item(self, index: int, rng: np.random.Generator) -> Tensor: ...

    def eval_item(self, index: int) -> Tensor: ...

    def describe(self) -> dict[str, object]: ...


class TrainingImages(Dataset):
    """Training images with masks, addressed by (epoch, index). A sample depends on (seed, epoch, index) alone.

    Args:
        source: The images.
        counts: Numbers of patches, of occluded patches, and of occluded patches that stay visible.
        seed: Seed of crops, augmentation and masks.
        occluded_range: See :class:`InpaintingData`.
    """

    def __init__(
        self,
        source: ImageSource,
        counts: tuple[int, int, int],
        seed: int,
        occluded_range: tuple[float, float] | None = None,
    ):
        self.source, self.counts, self.seed, self.occluded_range = source, counts, seed, occluded_range

    def __len__(self) -> int:
        return self.source.train_length

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor | int]:
        epoch, index = key
        rng = sample_rng(self.seed, epoch, index)
        image = self.source.train_item(index, rng)
        patches, num_occluded, num_kept = self.counts
        if self.occluded_range is not None:
            kept_share = num_kept / max(1, num_occluded)
            num_occluded = max(1, round(patches * rng.uniform(*self.occluded_range)))
            num_kept = round(num_occluded * kept_share)
        occluded, masked = draw_masks(rng, patches, num_occluded, num_kept)
        return {"image": image, "occluded": occluded, "masked": masked, "index": index, "mask_seed": 0}


class EvaluationImages(Dataset):
    """Evaluation images with masks, addressed by (epoch, index).

    A mask depends on (mask seed, index of the image) alone: all models, epochs and batch sizes have the same masks.

    Args:
        source: The images.
        counts: As of :class:`TrainingImages`.
        mask_seeds: Number of masks per image.
    """

    def __init__(self, source: ImageSource, counts: tuple[int, int, int], mask_seeds: int = 1):
        self.source, self.counts, self.mask_seeds = source, counts, mask_seeds

    def __len__(self) -> int:
        return self.source.eval_length * self.mask_seeds

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor | int]:
        mask_seed, index = divmod(key[1], self.source.eval_length)
        occluded, masked = draw_masks(sample_rng(mask_seed, 0, index), *self.counts)
        image = self.source.eval_item(index)
        return {"image": image, "occluded": occluded, "masked": masked, "index": index, "mask_seed": mask_seed}


def evaluation_batch(data: pl.LightningDataModule, indices: Iterable[int]) -> dict[str, Tensor]:
    """Evaluation images with their first masks, as a batch."""
    images = data.val_dataloader().dataset
    return default_collate([images[0, int(index)] for index in indices])


class InpaintingData(pl.LightningDataModule):
    """Masked images for training, validation (one mask an image) and test (``mask_seeds`` masks an image).

    Args:
        source: The images.
        image_size, patch_size: Side in pixels, or (height, width).
        channels: Number of channels.
        num_occluded: Number of patches per image that the loss is over. If None, 100 of 196 (appendix B).
        num_kept: Number of occluded patches that stay visible. If None, a tenth of ``num_occluded`` (appendix B).
        occluded_range: Smallest and largest share of the patches that training occludes, drawn for each image; the same
            part of them stays visible. If None, ``num_occluded``. Evaluation always occludes ``num_occluded``.
        batch_size: Number of images in a batch over all processes.
        num_workers: Number of loader processes.
        mask_seeds: Number of masks per test image (table 14: 10).
        seed: Seed of crops, augmentation, order and masks in training.

    Raises:
        UserError: The counts do not fit, or a set of images is empty.
    """

    def __init__(
        self,
        source: ImageSource,
        image_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        channels: int = 3,
        num_occluded: int | None = None,
        num_kept: int | None = None,
        batch_size: int = 256,
        num_workers: int = 0,
        mask_seeds: int = 1,
        seed: int = 0,
        occluded_range: tuple[float, float] | None = None,
    ):
        super().__init__()
        check_sizes(channels=channels, batch_size=batch_size, mask_seeds=mask_seeds)
        check_sizes(minimum=0, num_workers=num_workers)
        rows, columns = grid_shape(image_size, patch_size)
        self.source, self.num_patches = source, rows * columns
        self.num_occluded = round(self.num_patches * 100 / 196) if num_occluded is None else num_occluded
        self.num_kept = round(self.num_occluded / 10) if num_kept is None else num_kept
        if not 0 <= self.num_kept < self.num_occluded <= self.num_patches:
            raise UserError(
                f"0 <= data.num_kept ({self.num_kept}) < data.num_occluded ({self.num_occluded}) <= {self.num_patches} "
                "patches of an image must hold: without a hidden patch there is nothing to complete"
            )
        held = getattr(source, "channels", 3)
        if channels != held:
            raise UserError(f"data.channels={channels}, but the images of {source.name} have {held}: set data.channels")
        if occluded_range is not None and not (
            len(occluded_range) == 2 and 0 <= occluded_range[0] <= occluded_range[1] <= 1
        ):
            raise UserError(
                f"data.occluded_range must be two shares from 0 to 1, the smaller first, not {list(occluded_range)}"
            )
        self.occluded_range = occluded_range
        self.batch_size, self.num_workers, self.mask_seeds, self.seed = batch_size, num_workers, mask_seeds, seed

    @staticmethod
    def location(config: Mapping[str, Any]) -> str:
        """The folder that a user's own images are in."""
        return config["source"]["root"]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Numbers of patches, of occluded patches, and of occluded patches that stay visible."""
        return self.num_patches, self.num_occluded, self.num_kept

    def train_dataloader(self) -> DataLoader[Any]:
        images = TrainingImages(self.source, self.counts, self.seed, self.occluded_range)
        used = whole_batches(len(images), self.batch_size)
        return self._loader(images, EpochSampler(len(images), self.seed, shuffle=True, used=used))

    def val_dataloader(self) -> DataLoader[Any]:
        images = EvaluationImages(self.source, self.counts)
        return self._loader(images, EpochSampler(len(images)))

    def test_dataloader(self) -> DataLoader[Any]:
        images = EvaluationImages(self.source, self.counts, self.mask_seeds)
        return self._loader(images, EpochSampler(len(images)))

    def _loader(self, images: TrainingImages | EvaluationImages, sampler: EpochSampler) -> DataLoader[Any]:
        training = isinstance(images, TrainingImages)
        if not len(images):
            raise UserError(f"the {'training' if training else 'evaluation'} set of {self.source.name!r} has no images")
        return DataLoader(
            images, per_process(self.batch_size), sampler=sampler, num_workers=self.num_workers,
            persistent_workers=training and self.num_workers > 0, pin_memory=torch.cuda.is_available(),
        )  # fmt: skip

    def describe(self) -> dict[str, object]:
        """What the run's record says of the data."""
        return {
            **self.source.describe(), "patches": self.num_patches, "occluded": self.num_occluded, "kept": self.num_kept,
            "mask_seeds": self.mask_seeds,
        }  # fmt: skip
