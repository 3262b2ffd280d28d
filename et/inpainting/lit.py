"""Training and scoring of image completion (appendix B, tables 14 and 16)."""

from __future__ import annotations

from typing import Literal

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from et.inpainting.fill_baselines import mean_fill, nearest_fill
from et.inpainting.patches import fill, mask_first_patch, patchify
from et.inpainting.pixels import STD, to_pixels
from et.training import optim as optimizers

Batch = dict[str, Tensor]


def masked_mse(prediction: Tensor, target: Tensor, chosen: Tensor) -> Tensor:
    """Mean squared error over the pixels of each image's chosen patches: (B, N, P), (B, N) bool -> (B,).

    An image without a chosen patch has error 0.
    """
    error = (prediction - target).square().mean(-1) * chosen
    return error.sum(1) / chosen.sum(1).clamp(min=1)


def reconstruction_loss(prediction: Tensor, target: Tensor, occluded: Tensor, fidelity: str) -> Tensor:
    """The loss of a batch, ().

    ``paper``: the mean squared error over the occluded patches. ``released``: the root of the mean over *all* pixels,
    with the differences of patches that are not occluded set to zero.
    """
    if fidelity == "paper":
        return ((prediction - target).square().mean(-1) * occluded).sum() / occluded.sum().clamp(min=1)
    return ((prediction - target) * occluded[..., None]).square().mean().sqrt()


class MeanPerSeed(Metric):
    """Means of a per-image number, one for every masking seed, and its deviation over all images and seeds."""

    full_state_update = False

    def __init__(self, num_seeds: int):
        super().__init__()
        for name in ("total", "squares", "count"):
            self.add_state(name, torch.zeros(num_seeds, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor, seeds: Tensor) -> None:
        """Add values (B,) of images masked with ``seeds`` (B,)."""
        values = values.double()
        self.total.index_add_(0, seeds, values)
        self.squares.index_add_(0, seeds, values.square())
        self.count.index_add_(0, seeds, torch.ones_like(values))

    def compute(self) -> dict[str, Tensor]:
        """``mean`` over everything, ``std_masks`` of the seeds' means, ``std_images`` over images and seeds."""
        used = self.count > 0
        means = self.total[used] / self.count[used]
        mean = self.total.sum() / self.count.sum()
        variance = (self.squares.sum() / self.count.sum() - mean.square()).clamp(min=0)
        spread = means.std() if len(means) > 1 else means.new_zeros(())
        return {"mean": mean.float(), "std_masks": spread.float(), "std_images": variance.sqrt().float()}


def image_scores(completed: Tensor, images: Tensor) -> dict[str, Tensor]:
    """PSNR in dB and SSIM of completed images against the originals, (B,) each, on the pixel and the normalised scale.

    The pixel scale runs from 0 to 1; the normalised one over the mean range of the three channels, 1 / mean(std).
    """
    scores = {}
    scales = {"": (to_pixels(completed), to_pixels(images), 1.0), "_normalised": (completed, images, 3 / sum(STD))}
    for suffix, (prediction, target, data_range) in scales.items():
        psnr = peak_signal_noise_ratio(prediction, target, data_range, dim=(1, 2, 3), reduction="none")
        scores[f"psnr{suffix}"] = psnr
        scores[f"ssim{suffix}"] = structural_similarity_index_measure(
            prediction, target, data_range=data_range, reduction="none"
        )
    return scores


class InpaintingTask(pl.LightningModule):
    """Trains a network that reconstructs patches, and scores it.

    ``val/mse`` and ``test/mse`` are over the occluded patches, as the paper's; ``mse_masked`` over those alone that the
    network could not see, which is what the trivial fillings are compared on (``mse_mean_fill``,
    ``mse_nearest_fill``). PSNR and SSIM are of whole images in which the masked patches were filled in.

    Args:
        network: maps images (B, C, H, W) and masks (B, N) to patches (B, N, P).
        optim: configuration of the optimizer.
        fidelity: which loss, see :func:`reconstruction_loss`.
        mask_first_patch: If True, training always hides patch 0, see :func:`et.inpainting.patches.mask_first_patch`.
            If None, as ``fidelity`` has it (paper: False, released: True). Evaluation never does.
        mask_seeds: masks per test image, as the data has them.
        compile: run the network through torch.compile.
    """

    def __init__(
        self,
        network: nn.Module,
        optim: DictConfig,
        fidelity: Literal["paper", "released"] = "paper",
        mask_seeds: int = 1,
        compile: bool = False,
        mask_first_patch: bool | None = None,
    ):
        super().__init__()
        self.network, self.optim, self.fidelity = network, optim, fidelity
        self.mask_first_patch = fidelity == "released" if mask_first_patch is None else mask_first_patch
        if compile:
            network.compile()
        self.validation = nn.ModuleDict({name: MeanPerSeed(1) for name in ("mse", "mse_masked")})
        names = ("mse", "mse_masked", "mse_pixel", "psnr", "ssim", "psnr_normalised", "ssim_normalised")
        fillings = ("mse_mean_fill", "mse_nearest_fill")
        self.tests = nn.ModuleDict({name: MeanPerSeed(mask_seeds) for name in (*names, *fillings)})

    def configure_optimizers(self) -> dict:
        return optimizers.configure(self.optim, self, self.trainer)

    def _patches(self, batch: Batch, masked: Tensor) -> tuple[Tensor, Tensor]:
        """(prediction, target), both (B, N, P) float32."""
        prediction = self.network(batch["image"], masked).float()
        return prediction, patchify(batch["image"], self.network.patch_size)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        masked = batch["masked"]
        if self.mask_first_patch:
            masked = mask_first_patch(masked, batch["occluded"])
        prediction, target = self._patches(batch, masked)
        loss = reconstruction_loss(prediction, target, batch["occluded"], self.fidelity)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        prediction, target = self._patches(batch, batch["masked"])
        for name, chosen in (("mse", "occluded"), ("mse_masked", "masked")):
            self.validation[name].update(
                masked_mse(prediction, target, batch[chosen]), torch.zeros_like(batch["index"])
            )

    def on_validation_epoch_end(self) -> None:
        for name, metric in self.validation.items():
            self.log(f"val/{name}", metric.compute()["mean"], prog_bar=name == "mse")
            metric.reset()

    def test_step(self, batch: Batch, batch_index: int) -> None:
        prediction, target = self._patches(batch, batch["masked"])
        masked, network = batch["masked"], self.network
        completed = fill(batch["image"], prediction, masked, network.patch_size)
        values = {
            "mse": masked_mse(prediction, target, batch["occluded"]),
            "mse_masked": masked_mse(prediction, target, masked),
            "mse_pixel": (to_pixels(completed) - to_pixels(batch["image"])).square().mean(dim=(1, 2, 3)),
            "mse_mean_fill": masked_mse(mean_fill(target, masked, network.channels), target, masked),
            "mse_nearest_fill": masked_mse(nearest_fill(target, masked, network.grid), target, masked),
            **image_scores(completed, batch["image"]),
        }
        for name, value in values.items():
            self.tests[name].update(value, batch["mask_seed"])

    def on_test_epoch_end(self) -> None:
        found = {name: metric.compute() for name, metric in self.tests.items()}
        for name, result in found.items():
            self.log(f"test/{name}", result["mean"])
        for spread in ("std_masks", "std_images"):
            self.log(f"test/mse_{spread}", found["mse"][spread])
        for metric in self.tests.values():
            metric.reset()
