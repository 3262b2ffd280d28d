"""Recorded descents of a few completions: the image at every step t and the energies of the two modules.

They are written to a run's folder as descent.json and a folder of WebP pictures, small enough to embed in a page.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from et.inpainting.data import evaluation_batch
from et.inpainting.patches import fill, hide, join_tiles, patchify
from et.inpainting.pixels import to_pixels
from et.inpainting.scores import masked_mse
from et.utils.files import write_atomically

FILE = "descent.json"
WINDOWS_AT_ONCE = 32


@dataclass(frozen=True)
class Subject:
    """One picture to complete: evaluation images ``indices`` that tile it, row by row, on ``grid``."""

    name: str
    indices: tuple[int, ...]
    grid: tuple[int, int] = (1, 1)


def subjects_of(data: pl.LightningDataModule, count: int = 4) -> list[Subject]:
    """Held-out photographs at full size if the data are photographs, else ``count`` evaluation images."""
    if not hasattr(data.source, "layout"):
        length = data.source.eval_length
        chosen = np.linspace(0, length - 1, min(count, length)).astype(int)
        names = getattr(data.source, "eval_names", None)
        return [Subject(names[index] if names else f"image {index}", (int(index),)) for index in chosen]
    (height, width), start, found = data.source.size, 0, {}
    for name, image in data.source.layout:
        rows, columns = image.shape[0] // height, image.shape[1] // width
        found.setdefault(name, Subject(name, tuple(range(start, start + rows * columns)), (rows, columns)))
        start += rows * columns
    return list(found.values())


def record_descents(
    network: torch.nn.Module, data: pl.LightningDataModule, folder: Path, count: int = 4, steps: int | None = None
) -> Path:
    """Descend again on a few evaluation images and write descent.json and descent/*.webp into ``folder``.

    The energies of a picture are means over its windows. Its error is the mean squared error over all hidden patches,
    in normalised units as ``test/mse_masked``.

    Args:
        network: An image model with ``trajectory`` and ``decode``.
        data: Its data module.
        folder: Existing folder to write to.
        count: Number of images, if the data are not whole photographs.
        steps: Number of steps. If None, the T of training.

    Returns:
        The path of descent.json.
    """
    pictures = []
    for number, subject in enumerate(subjects_of(data, count)):
        batch = evaluation_batch(data, subject.indices)
        parts = list(follow(network, batch, steps))
        pixels, attention, hopfield, errors = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        original = to_pixels(batch["image"])
        stills = {"masked": hide(original, batch["masked"], network.patch_size), "original": original}
        joined = {label: join_tiles(still, subject.grid) for label, still in stills.items()}
        frames = [join_tiles(frame, subject.grid) for frame in pixels]
        errors = over_patches(errors, batch["masked"])
        pictures.append(picture_record(number, subject.name, frames, joined, attention, hopfield, errors, folder))
    return write_descent(network, pictures, folder)


def picture_record(
    number: int,
    name: str,
    frames: Iterable[Tensor],
    stills: Mapping[str, Tensor],
    attention: Tensor,
    hopfield: Tensor,
    errors: Tensor,
    folder: Path,
) -> dict[str, Any]:
    """Write the pictures of one descent to <folder>/descent and return what descent.json says of it.

    Args:
        number: Of the picture, for its files' names.
        name: What the page calls it.
        frames: The picture at every step, (3, H, W) in 0 .. 1 each.
        stills: ``masked`` and ``original``, alike.
        attention, hopfield: (T + 1, K) for K windows; their means are recorded.
        errors: Mean squared error over all hidden patches, (T + 1,).
        folder: Where descent.json goes.
    """
    (folder / "descent").mkdir(parents=True, exist_ok=True)
    names: dict[str, Any] = {label: f"descent/{number}_{label}.webp" for label in stills}
    for label, pixels in stills.items():
        save(pixels, folder / names[label])
    names["frames"] = []
    for t, pixels in enumerate(frames):
        names["frames"].append(f"descent/{number}_t{t:02d}.webp")
        save(pixels, folder / names["frames"][-1])
    height, width = stills["original"].shape[1:]
    return {
        "name": name, "height": height, "width": width, "windows": attention.shape[1], **names,
        "attention": _six_digits(attention.double().mean(1)), "hopfield": _six_digits(hopfield.double().mean(1)),
        "mse_masked": _six_digits(errors),
    }  # fmt: skip


def write_descent(
    network: torch.nn.Module, pictures: Sequence[Mapping[str, Any]], folder: Path, title: str | None = None
) -> Path:
    """Write descent.json; ``title`` says whose descents these are where they belong to no run."""
    path = folder / FILE
    record = {"trained_steps": network.steps, "step_size": network.step_size, "pictures": list(pictures)}
    write_atomically(path, json.dumps(record | ({"title": title} if title else {}), indent=1) + "\n")
    return path


def follow(
    network: torch.nn.Module, batch: dict[str, Tensor], steps: int | None, at_once: int = WINDOWS_AT_ONCE
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Descend and decode every step, ``at_once`` images at a time.

    Yields:
        Pixels (T + 1, B, 3, H, W) in 0 .. 1; attention and Hopfield energies and errors on masked patches, (T + 1, B).
    """
    device = next(network.parameters()).device
    for start in range(0, len(batch["image"]), at_once):
        images, masked = (batch[key][start : start + at_once].to(device) for key in ("image", "masked"))
        patches = patchify(images, network.patch_size)
        with torch.no_grad():
            descent = network.trajectory(images, masked, steps)
            pixels, errors = [], []
            for tokens in descent.states:
                decoded = network.decode(tokens[:, 1:]).float()
                pixels.append(to_pixels(fill(images, decoded, masked, network.patch_size)).cpu())
                errors.append(masked_mse(decoded, patches, masked).cpu())
        energies = descent.attention_energies.cpu(), descent.hopfield_energies.cpu()
        yield torch.stack(pixels), *energies, torch.stack(errors)


def over_patches(errors: Tensor, masked: Tensor) -> Tensor:
    """Mean over all hidden patches, (...,), of the means over those of each window, (..., K); ``masked`` is (K, N)."""
    weight = masked.sum(1).to(errors)
    return (errors * weight).sum(-1) / weight.sum()


def _six_digits(values: Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def save(pixels: Tensor, path: Path) -> None:
    """Write (3, H, W) in 0 .. 1 as the suffix says, PNG and small WebP images without loss."""
    from PIL import Image

    array = (pixels.permute(1, 2, 0).float() * 255).round().to(torch.uint8).numpy()
    webp = {"quality": 86, "method": 6, "lossless": array.size < 3 * 100 * 100} if path.suffix == ".webp" else {}
    Image.fromarray(array).save(path, **webp)
