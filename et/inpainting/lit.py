"""Training and scoring of image completion (appendix B, tables 14 and 16)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torchmetrics import Metric

from et.core.arguments import check_sizes
from et.inpainting.fill_baselines import mean_fill, nearest_fill
from et.inpainting.patches import fill, mask_first_patch, patchify
from et.inpainting.random_steps import RandomStepCounts, check_random_steps
from et.inpainting.scores import image_scores, masked_mse
from et.training.task import Task
from et.utils.errors import UserError

Batch = dict[str, Tensor]

SCORES = (
    "mse", "mse_masked", "mse_visible", "mse_pixel", "psnr", "ssim", "ssim_interior", "psnr_normalised",
    "ssim_normalised", "ssim_interior_normalised", "mse_mean_fill", "mse_nearest_fill",
)  # fmt: skip


def reconstruction_loss(prediction: Tensor, target: Tensor, occluded: Tensor, fidelity: str) -> Tensor:
    """Loss of a batch, ().

    ``paper``: mean squared error over the occluded patches. ``released``: root mean square over *all* pixels, with the
    differences of patches that are not occluded set to zero.

    Args:
        prediction, target: Pixels of the patches, (B, N, P).
        occluded: Mask of the patches that the loss is over, (B, N) bool.
        fidelity: ``paper`` or ``released``.
    """
    if fidelity == "paper":
        return ((prediction - target).square().mean(-1) * occluded).sum() / occluded.sum().clamp(min=1)
    return ((prediction - target) * occluded[..., None]).square().mean().sqrt()


class MeanPerSeed(Metric):
    """Mean and standard deviations of a number per image.

    Args:
        num_seeds: Number of masking seeds.
    """

    full_state_update = False

    def __init__(self, num_seeds: int):
        super().__init__()
        self.num_seeds = num_seeds
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


class InpaintingTask(Task):
    """Trains and scores a network that reconstructs patches.

    ``val/mse`` and ``test/mse`` are over the occluded patches, as in the paper. ``mse_masked`` is over the patches that
    the network could not see, ``mse_visible`` over those that it saw. The trivial fillings ``mse_mean_fill`` and
    ``mse_nearest_fill`` compare with ``mse_masked``. PSNR and SSIM are of whole images whose masked patches were filled
    in, see :func:`et.inpainting.scores.image_scores`.

    Args:
        network: Maps images (B, C, H, W) and masks (B, N) to patches (B, N, P).
        optim: Configuration of the optimizer and its schedule.
        fidelity: ``paper`` or ``released`` loss, see :func:`reconstruction_loss`.
        mask_first_patch: If True, training always hides patch 0, see :func:`et.inpainting.patches.mask_first_patch`.
            If None, as ``fidelity`` has it (paper: False, released: True). Evaluation never does.
        mask_seeds: Number of masks per test image, that of the data.
        compile: If True, run the network through torch.compile.
        init_weights: Initial weights: ``pretrained`` (the published ones), a run's folder or a converted checkpoint.
            Position biases are resized to the image. If None, the network's own.
        steps_range, loss_steps, rest_steps: Numbers of steps in training, see
            :class:`et.inpainting.random_steps.RandomStepCounts`. If ``steps_range`` is None, the T of the network.
            Evaluation always takes T.
    """

    family = "inpainting"
    precisions = (*Task.precisions, "64-true")
    validation_metrics = ("val/mse", "val/mse_masked")
    main_metrics = ("test/mse_masked", "test/mse_nearest_fill", "test/mse", "test/psnr")
    repeat_tolerance = 0.02

    def __init__(
        self,
        network: nn.Module,
        optim: DictConfig,
        fidelity: Literal["paper", "released"] = "paper",
        mask_seeds: int = 1,
        compile: bool = False,
        mask_first_patch: bool | None = None,
        init_weights: str | None = None,
        steps_range: list[int] | None = None,
        loss_steps: int = 1,
        rest_steps: int = 0,
    ):
        super().__init__(network, optim)
        check_sizes(mask_seeds=mask_seeds)
        self.random_steps = None
        if steps_range is not None or loss_steps != 1 or rest_steps:
            check_random_steps(network)
            self.random_steps = RandomStepCounts(steps_range or [network.steps] * 2, loss_steps, rest_steps)
        self.fidelity, self.init_weights = fidelity, init_weights
        self.mask_first_patch = fidelity == "released" if mask_first_patch is None else mask_first_patch
        if compile:
            network.compile()
        self.validation = nn.ModuleDict({name: MeanPerSeed(1) for name in ("mse", "mse_masked")})
        self.tests = nn.ModuleDict({name: MeanPerSeed(mask_seeds) for name in SCORES})
        self.known_scores: dict[tuple[int, int], dict[str, float]] = {}  # by (index, mask seed), see ImageScores

    def setup(self, stage: str) -> None:
        masks, counted = getattr(self.trainer.datamodule, "mask_seeds", 1), self.tests["mse"].num_seeds
        if masks > counted:
            raise UserError(f"task.mask_seeds={counted}, but the data have {masks} masks an image: leave it out")
        # Before a checkpoint is restored, which replaces these weights where a run is resumed.
        if stage == "fit" and self.init_weights is not None:
            from et.runs.loading import initialise

            initialise(self.network, self.init_weights)

    def _patches(self, batch: Batch, masked: Tensor) -> tuple[Tensor, Tensor]:
        """(prediction, target), both (B, N, P) float32."""
        prediction = self.network(batch["image"], masked).float()
        return prediction, patchify(batch["image"], self.network.patch_size)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        masked = batch["masked"]
        if self.mask_first_patch:
            masked = mask_first_patch(masked, batch["occluded"])
        if self.random_steps is None:
            predictions = [self.network(batch["image"], masked)]
        else:  # drawn from the optimizer step, lest a resumed run draw others
            rng = np.random.default_rng((self.trainer.datamodule.seed, self.global_step, 0, 1))
            predictions = self.random_steps.reconstructions(self.network, batch["image"], masked, rng)
        target = patchify(batch["image"], self.network.patch_size)
        losses = [reconstruction_loss(p.float(), target, batch["occluded"], self.fidelity) for p in predictions]
        loss = torch.stack(losses).mean()
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

    def test_step(self, batch: Batch, batch_index: int) -> Batch:
        """Score a batch.

        Returns:
            The scores of each image, (B,) each, and ``completed``, (B, C, H, W), for callbacks; of a batch whose scores
            are known, these alone.
        """
        if known := self._known(batch):
            self.add_scores(known, batch["mask_seed"])
            return known
        prediction, target = self._patches(batch, batch["masked"])
        completed = fill(batch["image"], prediction, batch["masked"], self.network.patch_size)
        values = self._scores(batch, prediction, target, completed)
        self.add_scores(values, batch["mask_seed"])
        return {**values, "completed": completed}

    def add_scores(self, values: dict[str, Tensor], seeds: Tensor) -> None:
        """Count scores of images, (B,) each, that were masked with ``seeds``."""
        for name, metric in self.tests.items():
            metric.update(values[name], seeds)

    def _known(self, batch: Batch) -> dict[str, Tensor] | None:
        """Scores of a batch that an interrupted test kept. If one is missing, None."""
        keys = list(zip(batch["index"].tolist(), batch["mask_seed"].tolist(), strict=True))
        if not all(key in self.known_scores for key in keys):
            return None
        return {name: batch["image"].new_tensor([self.known_scores[key][name] for key in keys]) for name in SCORES}

    def _scores(self, batch: Batch, prediction: Tensor, target: Tensor, completed: Tensor) -> dict[str, Tensor]:
        masked, network = batch["masked"], self.network
        return {
            "mse": masked_mse(prediction, target, batch["occluded"]),
            "mse_masked": masked_mse(prediction, target, masked),
            "mse_visible": masked_mse(prediction, target, ~masked),
            "mse_mean_fill": masked_mse(mean_fill(target, masked, network.channels), target, masked),
            "mse_nearest_fill": masked_mse(nearest_fill(target, masked, network.grid), target, masked),
            **image_scores(completed, batch["image"]),
        }

    def on_test_epoch_end(self) -> None:
        found = {name: metric.compute() for name, metric in self.tests.items()}
        for name, result in found.items():
            self.log(f"test/{name}", result["mean"])
        for spread in ("std_masks", "std_images"):
            self.log(f"test/mse_{spread}", found["mse"][spread])
        for metric in self.tests.values():
            metric.reset()

    @classmethod
    def set_evaluation(
        cls,
        cfg: DictConfig,
        images: str | None = None,
        crop_mode: str | None = None,
        crop_pct: float | None = None,
        mask_seeds: int | None = None,
    ) -> None:
        if images is None and (crop_mode is not None or crop_pct is not None):
            raise UserError(
                "crop_mode= and crop_pct= say how images= are fitted to the model: name a folder of images too"
            )
        if images is not None:
            source = image_folder(Path(images), cfg.data.image_size, crop_mode or "center", crop_pct)
            cfg.data.source, cfg.data.num_workers = source, 0
        if mask_seeds is not None:
            cfg.data.mask_seeds = cfg.task.mask_seeds = mask_seeds

    @classmethod
    def evaluation_callbacks(cls, data: pl.LightningDataModule, folder: Path, own_items: bool) -> list[pl.Callback]:
        """Scores of every image and, of a person's own images, every completion."""
        from et.inpainting.pictures import CompletedImages
        from et.inpainting.scores import ImageScores

        completed = [CompletedImages(folder, data.source.eval_names)] if own_items else []
        return [ImageScores(folder), *completed]

    def write_report(self, trainer: pl.Trainer, data: pl.LightningDataModule, folder: Path) -> None:
        """Pictures of completions, see :func:`et.inpainting.pictures.draw_report`."""
        from et.inpainting.pictures import draw_report  # late, as below: matplotlib takes a second

        draw_report(self.network, data, folder)

    @classmethod
    def summary(cls, record: Mapping[str, Any]) -> str | None:
        """The error on masked patches against those of the two trivial fillings."""
        metrics = record["metrics"]
        if "test/mse_nearest_fill" not in metrics:
            return None
        error, clauses = metrics["test/mse_masked"], []
        for key, filling in (
            ("nearest", "copying the nearest visible patch"),
            ("mean", "the mean of the visible pixels"),
        ):
            trivial = metrics[f"test/mse_{key}_fill"]
            if trivial == 0:  # a picture of one colour
                continue
            verdict = "lower" if error < trivial else "higher"
            clauses.append(f"{abs(1 - error / trivial):.0%} {verdict} than {filling} ({trivial:.3f})")
        beside = f", {' and '.join(clauses)}" if clauses else ""
        return f"Mean squared error on masked patches: {error:.3f}{beside}."

    def trivial_inputs(self, batch: Batch) -> Tensor:
        """Errors on the masked patches, (B,), if each is a copy of the nearest visible one."""
        target = patchify(batch["image"], self.network.patch_size)
        return masked_mse(nearest_fill(target, batch["masked"], self.network.grid), target, batch["masked"])

    @classmethod
    def trivial_answers(cls, inputs: Tensor) -> dict[str, tuple[str, float]]:
        return {"val/mse_masked": ("copying the nearest visible patch", float(inputs.mean()))}

    @classmethod
    def draw_figures(cls, network: nn.Module, data: pl.LightningDataModule, folder: Path) -> dict[str, Any]:
        """Figures 2 to 9, see :func:`et.inpainting.figures.draw_figures`."""
        from et.inpainting.figures import draw_figures

        return draw_figures(network, data, folder)

    @classmethod
    def compare_networks(cls, networks: Mapping[str, nn.Module], folder: Path) -> dict[str, Any]:
        """Figure 7: position biases side by side.

        Raises:
            UserError: One of the networks is not an image Energy Transformer.
        """
        from et.inpainting.figures import draw_positions
        from et.inpainting.model import InpaintingET

        for title, network in networks.items():
            if not isinstance(network, InpaintingET):
                raise UserError(f"{title} has no position biases to compare: it is not an image Energy Transformer")
        return draw_positions(networks, folder / "positions_compared.png")


def image_folder(images: Path, image_size: int, crop_mode: str, crop_pct: float | None) -> dict[str, Any]:
    """Configuration of a folder of images to complete.

    Args:
        images: The folder.
        image_size: Of the model.
        crop_mode: How an image is fitted to the model, as timm has it: ``center``, ``squash`` or ``border``.
        crop_pct: Share of the shorter side that is kept. If None, 1: an image of the model's size stays as it is.

    Raises:
        UserError: ``crop_mode`` or ``crop_pct`` has no such value.
    """
    crop_pct = 1.0 if crop_pct is None else crop_pct
    if crop_mode not in ("center", "squash", "border"):
        raise UserError(f"crop_mode must be center, squash or border, not {crop_mode!r}")
    if not isinstance(crop_pct, int | float) or not 0 < crop_pct <= 1:
        raise UserError(f"crop_pct must be above 0 and at most 1, not {crop_pct}")
    return {
        "_target_": "et.inpainting.folders.ImageFolders", "root": str(images), "train": None, "evaluation": ".",
        "image_size": image_size, "name": images.resolve().name, "crop_mode": crop_mode, "crop_pct": crop_pct,
    }  # fmt: skip
