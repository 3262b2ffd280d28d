"""Scores of completed images, one number an image, and the file that they are kept in."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from et.inpainting.pixels import STD, to_pixels

SSIM_SIGMA, SSIM_RADIUS = 1.5, 5  # of the Gaussian window, 11 x 11 pixels
FILE = "scores.csv"


def masked_mse(prediction: Tensor, target: Tensor, chosen: Tensor) -> Tensor:
    """Mean squared error over the pixels of each image's chosen patches: (B, N, P), (B, N) bool -> (B,).

    An image without a chosen patch has error 0.
    """
    error = (prediction - target).square().mean(-1) * chosen
    return error.sum(1) / chosen.sum(1).clamp(min=1)


def image_scores(completed: Tensor, images: Tensor) -> dict[str, Tensor]:
    """MSE, PSNR and SSIM of completed images against the originals, on the pixel and the normalised scale.

    The pixel scale runs from 0 to 1; the normalised one over the mean range of the three channels, 1 / mean(std).

    Args:
        completed, images: (B, C, H, W), normalised.

    Returns:
        ``mse_pixel``, ``psnr`` in dB, ``ssim`` (torchmetrics' convention) and ``ssim_interior`` (scikit-image's; see
        :func:`structural_similarity`), and the last three with ``_normalised``: (B,) each.
    """
    scores = {}
    # Not under autocast: SSIM takes differences of means of squares, for which bfloat16 has too few digits.
    with torch.autocast(images.device.type, enabled=False):
        scales = {"": (to_pixels(completed), to_pixels(images), 1.0), "_normalised": (completed, images, 3 / sum(STD))}
        for suffix, (prediction, target, data_range) in scales.items():
            error = (prediction - target).square().mean(dim=(1, 2, 3))
            if not suffix:
                scores["mse_pixel"] = error
            scores[f"psnr{suffix}"] = 10 * (data_range**2 / error).log10()
            whole, interior = structural_similarity(prediction, target, data_range)
            scores[f"ssim{suffix}"], scores[f"ssim_interior{suffix}"] = whole, interior
    return scores


def structural_similarity(a: Tensor, b: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    """SSIM with a Gaussian window of 11 x 11 pixels and population covariances, in both usual conventions.

    Args:
        a, b: Images (B, C, H, W).
        data_range: Largest minus smallest possible value.

    Returns:
        (B,) twice: the mean over all pixels, the images padded by reflection (torchmetrics), and the mean over the
        pixels whose window lies inside the image (scikit-image, ``use_sample_covariance=False``). NaN for images that
        are smaller than the window.
    """
    if min(a.shape[-2:]) <= 2 * SSIM_RADIUS:
        return (a.new_full((len(a),), math.nan),) * 2
    offsets = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, dtype=a.dtype, device=a.device)
    window = (-offsets.square() / (2 * SSIM_SIGMA**2)).exp()
    window = window / window.sum()

    def banded(size: int) -> Tensor:  # as matrix products the two passes are 5x as fast as grouped convolutions
        matrix = a.new_zeros(size - 2 * SSIM_RADIUS, size)
        matrix.as_strided((len(matrix), len(window)), (size + 1, 1)).copy_(window)
        return matrix

    def blurred(values: Tensor) -> Tensor:
        return banded(values.shape[-2]) @ values @ banded(values.shape[-1]).T

    a, b = (F.pad(values, (SSIM_RADIUS,) * 4, mode="reflect") for values in (a, b))
    mean_a, mean_b, square_a, square_b, product = blurred(torch.cat([a, b, a * a, b * b, a * b])).chunk(5)
    variance_a, variance_b = ((s - m * m).clamp(min=0) for s, m in ((square_a, mean_a), (square_b, mean_b)))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    local = luminance * (2 * (product - mean_a * mean_b) + c2) / (variance_a + variance_b + c2)
    inside = local[..., SSIM_RADIUS:-SSIM_RADIUS, SSIM_RADIUS:-SSIM_RADIUS]
    return local.mean(dim=(1, 2, 3)), inside.mean(dim=(1, 2, 3))


class ImageScores(pl.Callback):
    """Writes the scores of every tested image and mask to ``<folder>/scores.csv``, a batch at a time.

    Args:
        folder: Where the file goes; it must be writable, and is made. If None, the run's folder.
        resume: Take the rows that a stopped test left instead of computing them again. Only for weights that cannot
            change between the two, such as published ones.
    """

    def __init__(self, folder: Path | None = None, resume: bool = False):
        self.folder, self.resume = folder, resume
        self.rows: dict[tuple[int, int], dict[str, float]] = {}

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.path = Path(trainer.default_root_dir if self.folder is None else self.folder) / FILE
        if self.resume and self.path.exists():  # a row that was cut off goes
            whole = self.path.read_bytes()
            self.path.write_bytes(whole[: whole.rfind(b"\n") + 1])
        self.rows = read_scores(self.path) if self.resume else {}
        pl_module.known_scores = self.rows
        self.names = getattr(trainer.datamodule.source, "eval_names", None)
        if not self.rows and trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        scores = {name: values.tolist() for name, values in outputs.items() if name != "completed"}
        keys = zip(batch["index"].tolist(), batch["mask_seed"].tolist(), strict=True)
        fresh = [
            {"index": index, "mask_seed": seed, "name": self.names[index] if self.names else ""}
            | {name: values[i] for name, values in scores.items()}
            for i, (index, seed) in enumerate(keys)
            if (index, seed) not in self.rows
        ]
        if not fresh:
            return
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, fresh[0])
            if new:
                writer.writeheader()
            writer.writerows(fresh)


def read_scores(path: Path) -> dict[tuple[int, int], dict[str, float]]:
    """Scores by (index, mask seed) from a file of :class:`ImageScores`; empty if there is none, or it is damaged."""
    found = {}
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                key = int(row.pop("index")), int(row.pop("mask_seed"))
                row.pop("name")
                found[key] = {name: float(value) for name, value in row.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        print(f"warning: {path} is damaged ({error}); its images are scored again")
        return {}
    return found
