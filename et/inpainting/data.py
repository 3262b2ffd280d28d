"""Batches of images with the patches that are hidden in them."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from et.errors import UserError
from et.inpainting.patches import draw_masks, grid_shape
from et.sampling import EpochSampler, per_process, sample_rng


class ImageSource(Protocol):
    """Where images come from: :class:`et.inpainting.photos.Photos` or :class:`et.inpainting.folders.ImageFolders`."""

    name: str
    train_length: int
    eval_length: int

    def train_item(self, index: int, rng: np.random.Generator) -> Tensor: ...

    def eval_item(self, index: int) -> Tensor: ...

    def describe(self) -> dict[str, object]: ...


class MaskedImages(Dataset):
    """Images with masks, addressed by (epoch, index).

    In training a sample depends on (seed, epoch, index). In evaluation there are ``mask_seeds`` masks an image, and
    those depend on (number of the mask, image) alone: every model, epoch and batch size meets the same ones.
    """

    def __init__(self, source: ImageSource, num_patches: int, num_occluded: int, num_kept: int, seed: int | None):
        self.source, self.seed = source, seed
        self.counts = (num_patches, num_occluded, num_kept)
        self.mask_seeds = 1

    def __len__(self) -> int:
        return self.source.train_length if self.seed is not None else self.source.eval_length * self.mask_seeds

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor | int]:
        epoch, index = key
        if self.seed is not None:
            rng = sample_rng(self.seed, epoch, index)
            image, mask_seed = self.source.train_item(index, rng), 0
        else:
            mask_seed, index = divmod(index, self.source.eval_length)
            rng = sample_rng(mask_seed, 0, index)
            image = self.source.eval_item(index)
        occluded, masked = draw_masks(rng, *self.counts)
        return {"image": image, "occluded": occluded, "masked": masked, "index": index, "mask_seed": mask_seed}


class InpaintingData(pl.LightningDataModule):
    """Masked images for training, validation (one mask an image) and test (``mask_seeds`` masks an image).

    Args:
        source: the images.
        image_size, patch_size, channels: shape of an image and of its patches, in pixels.
        num_occluded: patches of an image that the loss looks at; None: 100 of 196 of them (appendix B).
        num_kept: occluded patches that stay visible; None: a tenth of the occluded ones (appendix B).
        batch_size: global batch, shared out over the processes of a distributed run.
        num_workers: loader processes.
        mask_seeds: masks per test image (table 14: 10).
        seed: of crops, augmentation, order and masks in training.

    Raises:
        UserError: counts that do not fit, or an empty set of images.
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
    ):
        super().__init__()
        rows, columns = grid_shape(image_size, patch_size)
        self.source, self.num_patches = source, rows * columns
        self.num_occluded = round(self.num_patches * 100 / 196) if num_occluded is None else num_occluded
        self.num_kept = round(self.num_occluded / 10) if num_kept is None else num_kept
        if not 0 <= self.num_kept <= self.num_occluded <= self.num_patches:
            raise UserError(
                f"data.num_kept ({self.num_kept}) <= data.num_occluded ({self.num_occluded}) <= patches of an image "
                f"({self.num_patches}) must hold"
            )
        self.batch_size, self.num_workers, self.mask_seeds, self.seed = batch_size, num_workers, mask_seeds, seed

    def _loader(self, seed: int | None, mask_seeds: int = 1) -> DataLoader[Any]:
        training = seed is not None
        dataset = MaskedImages(self.source, self.num_patches, self.num_occluded, self.num_kept, seed)
        dataset.mask_seeds = mask_seeds
        if not len(dataset):
            raise UserError(f"the {'training' if training else 'evaluation'} set of {self.source.name!r} has no images")
        sampler = EpochSampler(
            len(dataset), seed or 0, shuffle=training, batch_size=self.batch_size if training else None
        )
        return DataLoader(
            dataset, per_process(self.batch_size), sampler=sampler, num_workers=self.num_workers,
            persistent_workers=training and self.num_workers > 0,
        )  # fmt: skip

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.seed)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(None)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(None, self.mask_seeds)

    def describe(self) -> dict[str, object]:
        """What the run's record says of the data."""
        return {
            **self.source.describe(), "patches": self.num_patches, "occluded": self.num_occluded, "kept": self.num_kept,
            "mask_seeds": self.mask_seeds,
        }  # fmt: skip
