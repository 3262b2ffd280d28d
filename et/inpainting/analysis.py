"""Analysis of a trained image model: weights and updates as pixels, energies, fixed points.

The decoder ends in an affine map from token space to pixels. A token is decoded by the whole map. A direction in token
space (a memory, a row of W^K, a gradient) is decoded by its linear part only, since a bias does not apply to
directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from et.core.descent import descend, speed
from et.inpainting.model import InpaintingET
from et.inpainting.patches import fill, patchify
from et.inpainting.scores import masked_mse


def position_similarity(network: InpaintingET) -> Tensor:
    """Cosine similarity of the position biases of all patches (figures 2 and 7): (rows, columns, rows, columns)."""
    unit = F.normalize(network.position.detach()[1:].float(), dim=-1)
    return (unit @ unit.T).float().reshape(*network.grid, *network.grid)


def locality(similarity: Tensor) -> float:
    """How local the positions are: mean similarity of patches side by side minus the mean over all other pairs."""
    rows, columns = similarity.shape[:2]
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    place = torch.stack([row.flatten(), column.flatten()], -1).float()
    distance = torch.cdist(place, place, p=1)
    flat = similarity.reshape(rows * columns, -1)
    return float(flat[distance == 1].mean() - flat[distance > 1].mean())


def decode_directions(network: InpaintingET, vectors: Tensor) -> Tensor:
    """Directions in token space as patches (figures 2, 4, 5 and 6): (..., D) -> (..., C, height, width)."""
    pixels = vectors.detach().float() @ network.decoder.weight.detach().float().T
    return pixels.float().unflatten(-1, (network.channels, *network.patch_size))


@dataclass(frozen=True)
class Trajectory:
    """A descent in the image plane (figure 4). T steps, B images, N patches of P values.

    Attributes:
        tokens: Decoded tokens before the first and after each step, (T + 1, B, N, P).
        attention, hopfield: Decoded update -dE/dg of each module at each of these states, (T + 1, B, N, P). None for a
            module that is left out.
        attention_size, hopfield_size: Root mean square of those updates in token space, for each patch, (T + 1, B, N).
        energies, attention_energies, hopfield_energies: Energies, (T + 1, B).
        g: Layer-normalised tokens with CLS before the first and after each step, (T + 1, B, 1 + N, D).
    """

    tokens: Tensor
    attention: Tensor | None
    hopfield: Tensor | None
    attention_size: Tensor | None
    hopfield_size: Tensor | None
    energies: Tensor
    attention_energies: Tensor
    hopfield_energies: Tensor
    g: Tensor


@torch.no_grad()
def follow(network: InpaintingET, images: Tensor, masked: Tensor, steps: int | None = None) -> Trajectory:
    """Descend with every step recorded: images (B, C, H, W), masked (B, N) bool. If ``steps`` is None, T."""
    descent = network.trajectory(images, masked, steps)
    g = network.block.norm(descent.states)
    seen: dict[str, Tensor | None] = {}
    for name in ("attention", "hopfield"):
        module = getattr(network.block, name)
        update = None if module is None else torch.stack([module.update(point).float() for point in g])[:, :, 1:]
        seen[name] = None if update is None else decode_directions(network, update).flatten(-3)
        seen[f"{name}_size"] = None if update is None else update.square().mean(-1).sqrt()
    return Trajectory(
        network.decode(descent.states[:, :, 1:]).float(), **seen, energies=descent.energies,
        attention_energies=descent.attention_energies, hopfield_energies=descent.hopfield_energies, g=g,
    )  # fmt: skip


@torch.no_grad()
def attention_of(network: InpaintingET, g: Tensor, patch: int) -> Tensor:
    """Whom a patch attends to: its row of each head's attention matrix.

    Args:
        network: A model with an attention module.
        g: Layer-normalised tokens with CLS, (..., 1 + N, D).
        patch: Index of the patch, 0 .. N - 1.

    Returns:
        Weights of the keys, CLS first, (..., H, 1 + N); they sum to 1.
    """
    attention, own = network.block.attention, 1 + patch
    queries = torch.einsum("...d,hyd->...hy", g[..., own, :].float(), attention.w_query)
    keys = torch.einsum("...nd,hyd->...hny", g.float(), attention.w_key)
    if attention.b_query is not None:
        queries, keys = queries + attention.b_query, keys + attention.b_key[:, None]
    scores = attention.beta[:, None] * torch.einsum("...hy,...hny->...hn", queries, keys)
    if not attention.all_pairs.self_attention:
        scores[..., own] = -torch.inf
    return scores.softmax(-1)


@dataclass(frozen=True)
class Convergence:
    """A descent that continues past T. S steps, B images.

    Attributes:
        speed: Root mean square of dg/dt of each image's fastest token at every step, (S, B).
        energies: Energies, (S + 1, B).
        mse: Mean squared error on the masked patches, (S + 1, B).
    """

    speed: Tensor
    energies: Tensor
    mse: Tensor

    def steps_to(self, tolerance: float) -> Tensor:
        """Number of steps until each image's speed is at most ``tolerance``, (B,); -1 if it never is."""
        below = self.speed <= tolerance
        return torch.where(below.any(0), below.int().argmax(0) + 1, -1)


@torch.no_grad()
def converge(network: InpaintingET, images: Tensor, masked: Tensor, steps: int) -> Convergence:
    """Descend for ``steps`` steps, independent of the T of training: images (B, C, H, W), masked (B, N) bool."""
    target, sizes = patchify(images, network.patch_size), network.step_sizes(steps)
    descent = descend(network.block, network.embed(target, masked), steps, sizes, record=True)
    g = network.block.norm(descent.states)
    each = sizes if isinstance(sizes, Tensor) else torch.full((steps,), float(sizes))
    speeds = torch.stack([speed(g[t], g[t + 1], each[t]) for t in range(steps)])
    errors = [masked_mse(network.decode(x[:, 1:]).float(), target, masked) for x in descent.states]
    return Convergence(speeds, descent.energies, torch.stack(errors))


@torch.no_grad()
def errors_by_image(network: torch.nn.Module, data: pl.LightningDataModule) -> Tensor:
    """Mean squared error on the occluded patches of every evaluation image, over its masking seeds (figures 8 and 9).

    Returns:
        (images,) float32 on the CPU, in the order of the data.
    """
    device, loader = next(network.parameters()).device, data.test_dataloader()
    total, count = torch.zeros(2, data.source.eval_length)
    for batch in loader:
        images = batch["image"].to(device)
        error = masked_mse(
            network(images, batch["masked"].to(device)).float(), patchify(images, network.patch_size),
            batch["occluded"].to(device),
        )  # fmt: skip
        total.index_add_(0, batch["index"], error.cpu())
        count.index_add_(0, batch["index"], torch.ones(len(error)))
    return total / count


def frames(network: InpaintingET, seen: Trajectory, images: Tensor, masked: Tensor) -> Tensor:
    """Completion at every step, (T + 1, B, C, H, W): visible patches unchanged, masked ones decoded."""
    return torch.stack([fill(images, tokens, masked, network.patch_size) for tokens in seen.tokens])
