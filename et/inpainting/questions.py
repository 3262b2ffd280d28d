"""Experiments with a trained image model that change nothing but inference: steps, starts, noise, masks, sizes, heads.

Errors are mean squared errors over the hidden patches, pixels normalised, one number for a batch unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from et.core import descend
from et.core.descent import speed
from et.inpainting.analysis import Convergence, converge
from et.inpainting.canvas import make_canvas
from et.inpainting.complete import EMBEDDED
from et.inpainting.fill_baselines import mean_fill, nearest_fill
from et.inpainting.folders import list_images, open_image
from et.inpainting.model import InpaintingET
from et.inpainting.patches import fill, patchify
from et.inpainting.photos import load_photo
from et.inpainting.pixels import to_pixels
from et.inpainting.scores import masked_mse

Batch = dict[str, Tensor]


def photographs(
    network: InpaintingET, count: int, folder: Path | None = None, ratio: float = 0.5, seed: int = 0
) -> Batch:
    """``count`` photographs, cropped to the model's size, with random masks.

    Args:
        network: An image model; its sizes count.
        count: How many photographs, spread over ``folder``; at most those that there are.
        folder: Images. If None, those that ship inside scikit-image and scikit-learn.
        ratio: Share of the patches that are hidden.
        seed: Of the masks; photograph i has the mask of seed + i.
    """
    found: Sequence[Any] = EMBEDDED if folder is None else list_images(folder).files
    chosen = torch.linspace(0, len(found) - 1, min(count, len(found))).long().tolist()
    canvases = []
    for number, index in enumerate(chosen):
        image = Image.fromarray(load_photo(found[index])) if folder is None else open_image(found[index])
        canvases.append(make_canvas(str(found[index]), image, network, ratio=ratio, seed=seed + number))
    return {"image": torch.cat([c.tiles for c in canvases]), "masked": torch.cat([c.masked for c in canvases])}


@torch.no_grad()
def error_after(network: InpaintingET, batch: Batch, steps: int, step_size: float, noise_std: float = 0.0) -> float:
    """Error after ``steps`` steps of ``step_size``, with noise of ``noise_std`` in each (eq. 27)."""
    target = patchify(batch["image"], network.patch_size)
    return error_from(network, batch, network.embed(target, batch["masked"]), steps, step_size, noise_std)


@torch.no_grad()
def error_from(
    network: InpaintingET, batch: Batch, tokens: Tensor, steps: int, step_size: float, noise_std: float = 0.0
) -> float:
    """Error after a descent from ``tokens`` (B, 1 + N, D)."""
    x = descend(network.block, tokens, steps, step_size, noise_std=noise_std).x
    target = patchify(batch["image"], network.patch_size)
    return float(masked_mse(network.decode(x[:, 1:]).float(), target, batch["masked"]).mean())


def finer_steps(network: InpaintingET, batch: Batch) -> list[dict[str, float]]:
    """The same total time T alpha in fewer or more steps than in training."""
    total = network.steps * network.step_size
    counts = [max(1, network.steps // 2), network.steps, 2 * network.steps, 4 * network.steps, 10 * network.steps]
    return [{"steps": n, "step_size": total / n, "mse": error_after(network, batch, n, total / n)} for n in counts]


@torch.no_grad()
def other_starts(network: InpaintingET, batch: Batch, steps: int, sizes: tuple[float, ...]) -> list[dict[str, float]]:
    """Masked tokens displaced at the start by Gaussian noise of so many times their own root mean square.

    ``apart_at_T`` and ``apart_at_end``: root mean square distance of the masked tokens' g to those of the undisturbed
    descent after T and after ``steps`` steps, beside the same at the start; 2**0.5 would be unrelated states.
    """
    target, masked = patchify(batch["image"], network.patch_size), batch["masked"]
    start = network.embed(target, masked)
    hidden = torch.cat([torch.zeros_like(masked[:, :1]), masked], dim=1)

    def states(tokens: Tensor) -> list[Tensor]:
        middle = descend(network.block, tokens, network.steps, network.step_size).x
        end = descend(network.block, middle, steps - network.steps, network.step_size).x
        return [tokens, middle, end]

    plain, norm = states(start), network.block.norm
    found = []
    for size in sizes:
        torch.manual_seed(0)
        noise = torch.randn_like(start) * size * start[hidden].square().mean().sqrt() * hidden[..., None]
        other = states(start + noise)
        pairs = [(norm(a)[hidden], norm(b)[hidden]) for a, b in zip(other, plain, strict=True)]
        apart = [(a - b).square().mean().sqrt() / b.std() for a, b in pairs]
        mse = masked_mse(network.decode(other[1][:, 1:]).float(), target, masked).mean()
        names = ("apart_at_start", "apart_at_T", "apart_at_end")
        found.append({"noise": size, **dict(zip(names, map(float, apart), strict=True)), "mse_at_T": float(mse)})
    return found


@torch.no_grad()
def chosen_starts(network: InpaintingET, batch: Batch) -> list[dict[str, Any]]:
    """Masked tokens that start as something else than the MASK token: the error before the first step and after T."""
    target, masked = patchify(batch["image"], network.patch_size), batch["masked"]
    own = network.embed(target, masked)
    contents = {
        "mean colour of the visible pixels": mean_fill(target, masked, network.channels),
        "nearest visible patch": nearest_fill(target, masked, network.grid),
        "original patch": target,
    }
    starts = {"MASK token (as trained)": own, "position alone": _replaced(network, own, masked, None)}
    starts |= {name: _replaced(network, own, masked, patches) for name, patches in contents.items()}
    return [
        {
            "start": name,
            "mse_at_start": error_from(network, batch, tokens, 0, network.step_size),
            "mse_at_T": error_from(network, batch, tokens, network.steps, network.step_size),
        }
        for name, tokens in starts.items()
    ]


def _replaced(network: InpaintingET, own: Tensor, masked: Tensor, patches: Tensor | None) -> Tensor:
    """``own`` tokens with the masked ones made of ``patches`` (B, N, P), or of nothing but their position."""
    content = torch.zeros_like(own[:, 1:]) if patches is None else network.encoder(patches)
    fresh = torch.where(masked[..., None], content + network.position[1:], own[:, 1:])
    return torch.cat([own[:, :1], fresh], dim=1)


@torch.no_grad()
def rest(network: InpaintingET, batch: Batch, most: int, tolerances: tuple[float, ...]) -> list[dict[str, float]]:
    """Steps until an image's fastest token moves no faster than each tolerance, and how many images ever do."""
    tokens = network.embed(patchify(batch["image"], network.patch_size), batch["masked"])
    found = []
    for tolerance in tolerances:
        result = descend(network.block, tokens, most, network.step_size, tol=tolerance)
        after = descend(network.block, result.x, 1, network.step_size)
        still = speed(network.block.norm(result.x), network.block.norm(after.x), network.step_size)
        arrived = result.steps < most
        steps = result.steps[arrived].float()
        found.append(
            {
                "tolerance": tolerance,
                "arrived": float(arrived.float().mean()),
                "largest_speed_after": float(still.max()),
            }
            | ({"median_steps": float(steps.median()), "slowest": float(steps.max())} if arrived.any() else {})
        )
    return found


@torch.no_grad()
def descend_past(
    network: InpaintingET, batch: Batch, steps: int, keep: Sequence[int] = ()
) -> tuple[Convergence, dict[int, Tensor]]:
    """A long descent step by step, in the memory of one, and the completion after the steps in ``keep``.

    Returns:
        As of :func:`et.inpainting.analysis.converge`, and pixels (B, C, H, W) in 0 .. 1 by step.
    """
    images, masked = batch["image"], batch["masked"]
    target, norm = patchify(images, network.patch_size), network.block.norm
    sizes = network.step_sizes(steps)
    x = network.embed(target, masked)
    speeds, energies, errors, pictures = [], [], [], {}
    for t in range(steps + 1):
        decoded = network.decode(x[:, 1:]).float()
        errors.append(masked_mse(decoded, target, masked))
        if t in keep:
            pictures[t] = to_pixels(fill(images, decoded, masked, network.patch_size))
        if t == steps:
            break
        size = float(sizes[t]) if isinstance(sizes, Tensor) else sizes
        step = descend(network.block, x, 1, size, record="energy")
        energies += list(step.energies[:1] if t < steps - 1 else step.energies)
        speeds.append(speed(norm(x), norm(step.x), size))
        x = step.x
    return Convergence(torch.stack(speeds), torch.stack(energies), torch.stack(errors)), pictures


def without_second_term(network: InpaintingET, batch: Batch, steps: int) -> dict[str, Convergence]:
    """The trained network with its own update, and with the attention's second term dropped at inference only."""
    found = {"both terms": converge(network, batch["image"], batch["masked"], steps)}
    with only_term(network, "query"):
        found["first term only"] = converge(network, batch["image"], batch["masked"], steps)
    return found


@contextmanager
def only_term(network: InpaintingET, terms: str) -> Iterator[None]:
    """The attention's update with ``terms`` alone (query or key) within the block."""
    attention = network.block.attention
    own, attention.terms = attention.terms, terms
    try:
        yield
    finally:
        attention.terms = own


def summary(found: Convergence, trained_steps: int) -> dict[str, float]:
    """Error at T, the smallest error and its step, and how often the energy rose: up to T and after it."""
    mse, rises = found.mse.mean(1), (found.energies.diff(dim=0) > 0).float()
    return {
        "mse_at_T": float(mse[trained_steps]), "best_mse": float(mse.min()), "best_step": int(mse.argmin()),
        "mse_at_end": float(mse[-1]), "rises_until_T": float(rises[:trained_steps].mean()),
        "rises_after_T": float(rises[trained_steps:].mean()), "speed_at_end": float(found.speed[-1].mean()),
    }  # fmt: skip


def trivial_errors(network: InpaintingET, batch: Batch) -> dict[str, float]:
    """Errors of the two fillings that need no network."""
    target, masked = patchify(batch["image"], network.patch_size), batch["masked"]
    mean, nearest = mean_fill(target, masked, network.channels), nearest_fill(target, masked, network.grid)
    return {
        "mse_mean_fill": float(masked_mse(mean, target, masked).mean()),
        "mse_nearest_fill": float(masked_mse(nearest, target, masked).mean()),
    }


def scored(network: InpaintingET, batch: Batch) -> dict[str, float]:
    """Error after the trained descent beside those of the trivial fillings."""
    error = error_after(network, batch, network.steps, network.step_size)
    return {"mse": error, **trivial_errors(network, batch)}


@torch.no_grad()
def without_heads(network: InpaintingET, batch: Batch) -> list[dict[str, Any]]:
    """Errors after T steps without one attention head at a time, without the attention, and without the memories.

    A head without queries and keys adds nothing to the update.
    """
    parameters = {
        f"head {head + 1}": [(network.block.attention.w_query, head), (network.block.attention.w_key, head)]
        for head in range(network.block.attention.num_heads)
    }
    everything = slice(None)
    parameters["all heads"] = [
        (network.block.attention.w_query, everything),
        (network.block.attention.w_key, everything),
    ]
    parameters["Hopfield network"] = [(network.block.hopfield.memories, everything)]
    found = [{"without": "nothing", "mse": error_after(network, batch, network.steps, network.step_size)}]
    for name, parts in parameters.items():
        kept = [(weight, index, weight[index].clone()) for weight, index in parts]
        for weight, index, _ in kept:
            weight[index] = 0
        found.append({"without": name, "mse": error_after(network, batch, network.steps, network.step_size)})
        for weight, index, own in kept:
            weight[index] = own
    return found
