"""Pictures of completions and of the energy along the descent, and the callback that leaves them in the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from et.core import Descent
from et.inpainting.data import evaluation_batch
from et.inpainting.patches import hide, join_tiles
from et.inpainting.pixels import to_pixels
from et.inpainting.trajectories import record_descents, save, subjects_of


def draw_completions(rows: dict[str, Tensor], path: Path, title: str = "", names: Sequence[str] = ()) -> None:
    """Save a grid: one labelled row for each entry, each (B, 3, H, W) in 0 .. 1; ``names`` title its columns."""
    from matplotlib.figure import Figure

    columns = max(len(images) for images in rows.values())
    figure = Figure(figsize=(1.6 * columns + 0.6, 1.7 * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, (label, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image.permute(1, 2, 0).float().numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(label)
    for axis, name in zip(axes[0], names, strict=False):
        axis.set_title(name if len(name) <= 24 else f"...{name[-21:]}", fontsize=7)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def draw_energies(descent: Descent, path: Path, title: str = "energy along the descent", of: str = "images") -> None:
    """Save the recorded energies, (steps + 1, B), against the step: mean and range over what ``of`` names."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    parts = {"total": descent.energies, "attention": descent.attention_energies, "Hopfield": descent.hopfield_energies}
    for axis, (name, energies) in zip(figure.subplots(1, 3), parts.items(), strict=True):
        values = energies.float().reshape(len(energies), -1).cpu().numpy()
        steps = np.arange(len(values))
        axis.fill_between(steps, values.min(1), values.max(1), alpha=0.2, linewidth=0)
        axis.plot(steps, values.mean(1), marker="o", markersize=3)
        axis.set(title=name, xlabel="step t")
        axis.grid(alpha=0.3)
    figure.suptitle(f"{title} (mean and range over {values.shape[1]} {of})" if values.shape[1] > 1 else title)
    figure.savefig(path, dpi=110)


def whole_photos(network: torch.nn.Module, data: pl.LightningDataModule) -> list[tuple[str, dict[str, Tensor]]]:
    """The held-out photographs put together again from their completed windows.

    Returns:
        (name, {masked, completed, original}) for each photograph at its full size, pixels (3, H, W) in 0 .. 1.
    """
    pictures = []
    for photo in subjects_of(data):
        # Not from the loader: of several processes each has only its share of the windows there.
        rows = complete(network, evaluation_batch(data, photo.indices))
        pictures.append((photo.name, {row: join_tiles(pixels, photo.grid) for row, pixels in rows.items()}))
    return pictures


def complete(network: torch.nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Masked, completed and original pixels 0 .. 1 of a batch, on the CPU."""
    device = next(network.parameters()).device
    images, masked = batch["image"].to(device), batch["masked"].to(device)
    with torch.no_grad():
        completed = network.complete(images, masked)
    original = to_pixels(images)
    rows = {
        "masked": hide(original, masked, network.patch_size),
        "completed": to_pixels(completed),
        "original": original,
    }
    return {name: pixels.float().cpu() for name, pixels in rows.items()}


def draw_photo(name: str, rows: dict[str, Tensor], path: Path) -> None:
    """Save one photograph masked, completed and original, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(15, 15 / 3 * rows["original"].shape[1] / rows["original"].shape[2] + 0.5), layout="constrained"
    )
    for axis, (label, image) in zip(figure.subplots(1, len(rows)), rows.items(), strict=True):
        axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set(title=f"{name}: {label}", xticks=[], yticks=[])
    figure.savefig(path, dpi=110)


def draw_report(network: torch.nn.Module, data: pl.LightningDataModule, folder: Path, count: int = 8) -> list[Path]:
    """Save completions.png, energy.png, the recorded descent and, of photographs cut in windows, photo_NAME.png.

    Returns:
        The paths of the pictures and of descent.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = next(network.parameters()).device
    available = len(data.val_dataloader().dataset)
    shown = np.linspace(0, available - 1, min(count, available)).astype(int).tolist()
    batch = evaluation_batch(data, shown)
    network.eval()
    names = getattr(data.source, "eval_names", None)
    titles = [names[index] for index in shown] if names else ()
    draw_completions(complete(network, batch), folder / "completions.png", names=titles)
    paths = [folder / "completions.png"]
    if hasattr(network, "trajectory"):  # baselines have no energy
        with torch.no_grad():
            descent = network.trajectory(batch["image"].to(device), batch["masked"].to(device), record="energy")
        paths.append(folder / "energy.png")
        draw_energies(descent, paths[-1])
        paths.append(record_descents(network, data, folder))
    if hasattr(data.source, "layout"):
        for name, rows in whole_photos(network, data):
            paths.append(folder / f"photo_{name}.png")
            draw_photo(name, rows, paths[-1])
    return paths


class Pictures(pl.Callback):
    """Leaves the pictures of :func:`draw_report` in <run folder>/pictures when the run is tested."""

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run:
            draw_report(pl_module.network, trainer.datamodule, Path(trainer.default_root_dir) / "pictures")


class CompletedImages(pl.Callback):
    """Writes every tested image, completed under its first mask, to ``<folder>/completions/NAME.png``.

    Args:
        folder: Where the pictures go.
        names: Of the evaluation images, in order; folders in them are kept.
    """

    def __init__(self, folder: Path, names: Sequence[str]):
        self.folder, self.names = Path(folder) / "completions", names

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        pixels = to_pixels(outputs["completed"]).cpu()
        for image, index, seed in zip(pixels, batch["index"].tolist(), batch["mask_seed"].tolist(), strict=True):
            if seed == 0:
                path = self.folder / f"{self.names[index]}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                save(image, path)
