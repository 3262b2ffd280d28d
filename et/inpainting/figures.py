"""Figures 2 to 9 of the paper for a trained image model, its energies and fixed points, and an animated completion."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from et.inpainting import analysis
from et.inpainting.data import evaluation_batch
from et.inpainting.model import InpaintingET
from et.inpainting.patches import unpatchify
from et.inpainting.pictures import complete, draw_completions
from et.inpainting.pixels import to_pixels

TOLERANCE = 0.01  # speed in units of g per unit of time below which an image counts as converged
DPI = 110
MOST_HEADS = 6  # heads side by side in figure 6
MOST_STATES = 13  # columns of figure 4, which are all of the paper's T = 12
PAST_T = 8  # how many times T the descent is followed for its fixed point


def mosaic(patches: Tensor, columns: int) -> np.ndarray:
    """Arrange patches (K, C, h, w) side by side, each scaled to its own range, with white gaps: (H, W, C) in 0 .. 1."""
    low, high = patches.amin((1, 2, 3), keepdim=True), patches.amax((1, 2, 3), keepdim=True)
    scaled = (patches - low) / (high - low).clamp(min=1e-12)
    count, channels, height, width = scaled.shape
    rows = ceil(count / columns)
    canvas = torch.ones(channels, rows * (height + 1) - 1, columns * (width + 1) - 1)
    for number, patch in enumerate(scaled):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        canvas[:, top : top + height, left : left + width] = patch
    return canvas.permute(1, 2, 0).expand(-1, -1, 3).numpy()


def as_image(pixels: Tensor) -> np.ndarray:
    """Convert (C, H, W) in 0 .. 1 to (H, W, 3) for matplotlib and PIL."""
    return pixels.float().cpu().clamp(0, 1).permute(1, 2, 0).expand(-1, -1, 3).numpy()


def new_figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def draw_positions(networks: Mapping[str, InpaintingET], path: Path) -> dict[str, float]:
    """Draw figure 2 (centre), and figure 7 for several networks: each cell compares one patch's position with all
    others.

    Returns:
        :func:`et.inpainting.analysis.locality` of each network.
    """
    figure = new_figure(4.6 * len(networks), 4.9)
    found = {}
    for axis, (label, network) in zip(
        figure.subplots(1, len(networks), squeeze=False)[0], networks.items(), strict=True
    ):
        similarity = analysis.position_similarity(network)
        found[label] = analysis.locality(similarity)
        rows, columns = network.grid
        cells = np.pad(similarity.cpu().numpy(), ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
        shown = cells.transpose(0, 2, 1, 3).reshape(rows * (rows + 1), columns * (columns + 1))
        image = axis.imshow(shown, vmin=-1, vmax=1, cmap="viridis", interpolation="nearest")
        axis.set(xticks=[], yticks=[], title=label)
    figure.colorbar(image, ax=figure.axes, shrink=0.7, label="cosine similarity of position biases")
    figure.savefig(path, dpi=max(DPI, shown.shape[1]))  # three pixels for each similarity
    return found


def draw_memories(network: InpaintingET, path: Path, count: int | None = None) -> None:
    """Draw decoded memories: figure 2 right (the ``count`` longest) and figure 5 (all of them)."""
    memories = network.block.hopfield.memories.detach()
    chosen = memories[memories.norm(dim=1).argsort(descending=True)[:count]]
    patches = analysis.decode_directions(network, chosen).cpu()
    columns = ceil(len(patches) ** 0.5)
    side = max(6, 1.05 * columns * (network.patch_size[1] + 1) / DPI)  # no pixel of a memory is lost
    figure = new_figure(side, side + 0.3)
    axis = figure.subplots()
    axis.imshow(mosaic(patches, columns), interpolation="nearest")
    which = f"the {len(chosen)} longest of {len(memories)}" if len(chosen) < len(memories) else f"all {len(memories)}"
    axis.set(xticks=[], yticks=[], title=f"memories of the Hopfield network, decoded: {which}")
    figure.savefig(path, dpi=DPI)


def draw_attention_weights(network: InpaintingET, path: Path) -> None:
    """Draw figure 6: the rows of each head's W^Q and W^K, decoded."""
    attention = network.block.attention
    columns = min(attention.num_heads, MOST_HEADS)
    rows = ceil(attention.num_heads / columns)
    figure = new_figure(2.2 * columns + 0.4, 4.6 * rows)
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    weights = {"queries": attention.w_query, "keys": attention.w_key}
    for half, (label, weight) in zip((axes[:rows], axes[rows:]), weights.items(), strict=True):
        for head, axis in zip(range(attention.num_heads), half.flat, strict=False):
            patches = analysis.decode_directions(network, weight[head]).cpu()
            axis.imshow(mosaic(patches, ceil(len(patches) ** 0.5)), interpolation="nearest")
            axis.set_title(f"head {head + 1}, {label}", fontsize=9)
    figure.savefig(path, dpi=DPI)


def draw_steps(network: InpaintingET, seen: analysis.Trajectory, masked: Tensor, path: Path, image: int = 0) -> None:
    """Draw figure 4: one image's decoded tokens and both modules' updates before the first and after each step.

    At most 13 states are shown. The updates of a row share one scale, so a module with small updates turns grey.
    """
    steps = sorted(set(np.linspace(0, len(seen.tokens) - 1, min(MOST_STATES, len(seen.tokens))).round().astype(int)))
    rows = {"tokens": seen.tokens, "attention update": seen.attention, "Hopfield update": seen.hopfield}
    rows = {label: parts for label, parts in rows.items() if parts is not None}
    figure = new_figure(1.7 * len(steps) + 0.4, 1.8 * len(rows) + 2.2)
    axes = figure.subplots(
        len(rows) + 1, len(steps), squeeze=False, gridspec_kw={"height_ratios": [1.7] * len(rows) + [1.6]}
    )
    for row, (label, parts) in zip(axes, rows.items(), strict=False):
        pixels = unpatchify(parts[:, image].cpu(), network.patch_size, network.image_size)
        shown = to_pixels(pixels) if label == "tokens" else 0.5 + 0.5 * pixels / torch.quantile(pixels.abs(), 0.99)
        for axis, step in zip(row, steps, strict=True):
            axis.imshow(as_image(shown[step]), interpolation="nearest")
            axis.set(xticks=[], yticks=[], title=f"t = {step}")
        row[0].set_ylabel(label)
    for axis in axes[-1]:
        axis.remove()
    chart = figure.add_subplot(axes[-1][0].get_gridspec()[len(rows), :])
    for name, size, colour in (("attention", seen.attention_size, "C0"), ("Hopfield", seen.hopfield_size, "C1")):
        if size is not None:
            for where, chosen, style in (("masked", masked[image], "-"), ("open", ~masked[image], ":")):
                chart.plot(size[:, image, chosen].mean(-1).cpu(), style, color=colour, label=f"{name}, {where} patches")
    chart.set(xlabel="step t", ylabel="size of the update", ylim=(0, None))
    chart.legend(fontsize=8)
    figure.savefig(path, dpi=DPI)


def draw_energies(seen: analysis.Trajectory, path: Path) -> None:
    """Draw the energy of each module against the step, one line per image."""
    parts = {"total": seen.energies, "attention": seen.attention_energies, "Hopfield": seen.hopfield_energies}
    figure = new_figure(10, 3.2)
    for axis, (name, energies) in zip(figure.subplots(1, 3), parts.items(), strict=True):
        axis.plot(energies.cpu(), marker="o", markersize=3, linewidth=1)
        axis.set(title=name, xlabel="step t")
        axis.grid(alpha=0.3)
    figure.suptitle(f"energy along the descent, {seen.energies.shape[1]} images")
    figure.savefig(path, dpi=DPI)


def draw_convergence(found: analysis.Convergence, trained_steps: int, path: Path) -> None:
    """Draw speed, energy and error of each image; a broken line marks T."""
    parts = {
        "speed dg/dt of the fastest token": found.speed, "energy": found.energies, "MSE on masked patches": found.mse,
    }  # fmt: skip
    figure = new_figure(11, 3.2)
    for axis, (name, values) in zip(figure.subplots(1, 3), parts.items(), strict=True):
        axis.plot(values.cpu(), linewidth=1)
        axis.axvline(trained_steps, color="grey", linestyle="--")
        axis.set(title=name, xlabel="step t")
        axis.grid(alpha=0.3)
    figure.axes[0].set_yscale("log")
    figure.savefig(path, dpi=DPI)


def animate(pixels: Tensor, original: Tensor, path: Path, scale: int = 3, milliseconds: int = 350) -> None:
    """Save the completion as an animated WebP or GIF, by the suffix: (T + 1, B, C, H, W), original (B, C, H, W)."""
    target = torch.cat(list(original), dim=-1)
    pictures = []
    for step in pixels:
        both = as_image(torch.cat([torch.cat(list(step), dim=-1), target], dim=-2))
        image = Image.fromarray((both * 255).round().astype(np.uint8))
        pictures.append(image.resize((image.width * scale, image.height * scale), Image.NEAREST))
    durations = [2 * milliseconds, *[milliseconds] * (len(pictures) - 2), 6 * milliseconds]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def draw_figures(
    network: torch.nn.Module, data: pl.LightningDataModule, folder: Path, count: int = 8
) -> dict[str, Any]:
    """Draw every figure that applies to ``network`` into ``folder``.

    Returns:
        The numbers in the figures: ``worst`` and ``best`` (index, MSE over the masking seeds), and for an Energy
            Transformer ``locality``, ``update_sizes`` (of each module on the masked patches, by step), ``energy_rises``
            (share of steps in which an image's energy rose) and ``rest``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network = network.cpu().eval()
    errors = analysis.errors_by_image(network, data)
    order = errors.argsort().tolist()
    spread = np.linspace(0, len(order) - 1, min(count, len(order))).astype(int).tolist()
    batch = evaluation_batch(data, spread)
    draw_completions(complete(network, batch), folder / "examples.png")
    chosen = {"best": order[:count], "worst": order[::-1][:count]}
    for name, indices in chosen.items():
        masks = "1 mask" if data.mask_seeds == 1 else f"{data.mask_seeds} masks"
        title = f"{name} of {len(order)} images by mean squared error over {masks}"
        draw_completions(complete(network, evaluation_batch(data, indices)), folder / f"{name}.png", title)
    numbers = {name: [[index, float(errors[index])] for index in indices] for name, indices in chosen.items()}
    return {**numbers, **draw_inside(network, batch, folder)} if isinstance(network, InpaintingET) else numbers


def draw_inside(network: InpaintingET, batch: dict[str, Tensor], folder: Path) -> dict[str, Any]:
    """Draw the figures that exist for an Energy Transformer only; returns their numbers."""
    images, masked = batch["image"], batch["masked"]
    numbers: dict[str, Any] = {"locality": draw_positions({"": network}, folder / "positions.png")[""]}
    if network.block.hopfield is not None:
        draw_memories(network, folder / "memories.png", 100)
        draw_memories(network, folder / "memories_all.png")
    if network.block.attention is not None:
        draw_attention_weights(network, folder / "attention_weights.png")
    seen = analysis.follow(network, images, masked)
    draw_steps(network, seen, masked, folder / "steps.png", image=len(images) // 2)
    sizes = {"attention": seen.attention_size, "hopfield": seen.hopfield_size}
    numbers["update_sizes"] = {
        name: [float(f"{of_step[masked].mean():.4g}") for of_step in size]
        for name, size in sizes.items()
        if size is not None
    }
    draw_energies(seen, folder / "energies.png")
    numbers["energy_rises"] = float((seen.energies.diff(dim=0) > 0).float().mean())
    found = analysis.converge(network, images, masked, PAST_T * network.steps)
    draw_convergence(found, network.steps, folder / "convergence.png")
    numbers["rest"] = {
        "tolerance": TOLERANCE, "steps_followed": len(found.speed), "steps": found.steps_to(TOLERANCE).tolist(),
        "speed_at_T": float(found.speed[network.steps - 1].mean()), "speed_at_end": float(found.speed[-1].mean()),
        "mse_at_T": float(found.mse[network.steps].mean()), "mse_at_end": float(found.mse[-1].mean()),
    }  # fmt: skip
    pixels = to_pixels(analysis.frames(network, seen, images, masked))
    animate(pixels[:, :6], to_pixels(images[:6]), folder / "completion.webp")
    return numbers
