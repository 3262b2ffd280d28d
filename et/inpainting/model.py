"""The image model: affine encoder, CLS and MASK tokens, positions, one ET block, affine decoder (appendix B, H)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from et.core import Descent, EnergyTransformerBlock, decreasing, descend
from et.inpainting.patches import fill, grid_shape, pair, patchify


def sincos_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """Sines and cosines of each patch's row and column, (rows * columns, dim), with root mean square 1.

    The wavelengths run geometrically from 1.5 patches to four times the longer side of the grid.

    Raises:
        ValueError: ``dim`` is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"sincos positions need a token dimension that is a multiple of 4, not {dim}")
    wavelength = 1.5 * (4 * max(grid) / 1.5) ** torch.linspace(0, 1, dim // 4)
    row, column = torch.meshgrid(*(torch.arange(side).float() for side in grid), indexing="ij")
    angles = [2 * torch.pi * place.flatten()[:, None] / wavelength for place in (row, column)]
    return 2**0.5 * torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


class InpaintingET(nn.Module):
    """Completes images with masked patches by T steps of one ET block (algorithm 1).

    Patch tokens follow the CLS token, which the released code has and the text does not; it is kept under both
    fidelities, as the decoder's layer norm (appendix B) is the block's (released code). ``fidelity`` chooses between
    what paper and released code do differently beside that: self-attention (eq. 3 against eq. 13) and the initial
    standard deviations (0.02 for all, against 0.002 for attention, CLS, MASK and positions).

    Args:
        image_size, patch_size: in pixels, one number or (height, width); the image a multiple of the patch.
        channels: colour channels of the image.
        dim: token dimension D.
        num_heads, head_dim: H and Y.
        num_memories: M (the paper's K).
        steps: T.
        step_size: alpha = dt / tau.
        step_schedule: ``constant``, as the paper's; ``decreasing``, from ``step_size`` on as 1 / sqrt(1 + t);
            ``learned``: T positive numbers that start there.
        fidelity: ``paper`` or ``released``.
        self_attention: overrides what ``fidelity`` chooses.
        position_init: how the (trained) position biases start: as independent normal numbers, as the paper's, or as
            sines and cosines of row and column, under which neighbours are alike from the first step on.
        position_std: their initial root mean square; None: what ``fidelity`` chooses. The layer norm divides a token by
            its size, so a patch keeps its brightness and contrast only next to positions of comparable size.
        checkpoint: in training keep only the tokens of each step for the backward pass, which computes the steps again:
            less memory, more time. The results are the same.
        block: further arguments of :class:`EnergyTransformerBlock`.

    Raises:
        ValueError: the image is no multiple of the patch; ``fidelity``, ``position_init`` or ``step_schedule`` is
            unknown.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        channels: int = 3,
        dim: int = 768,
        num_heads: int = 12,
        head_dim: int = 64,
        num_memories: int = 3072,
        steps: int = 12,
        step_size: float = 0.1,
        fidelity: Literal["paper", "released"] = "paper",
        self_attention: bool | None = None,
        position_init: Literal["normal", "sincos"] = "normal",
        position_std: float | None = None,
        step_schedule: Literal["constant", "decreasing", "learned"] = "constant",
        checkpoint: bool = False,
        block: dict[str, Any] | None = None,
    ):
        super().__init__()
        if fidelity not in ("paper", "released"):
            raise ValueError(f"fidelity must be 'paper' or 'released', not {fidelity!r}")
        if position_init not in ("normal", "sincos"):
            raise ValueError(f"position_init must be 'normal' or 'sincos', not {position_init!r}")
        if step_schedule not in ("constant", "decreasing", "learned"):
            raise ValueError(f"step_schedule must be 'constant', 'decreasing' or 'learned', not {step_schedule!r}")
        released = fidelity == "released"
        self.image_size, self.patch_size, self.channels = pair(image_size), pair(patch_size), channels
        self.steps, self.step_size, self.step_schedule, self.checkpoint = steps, step_size, step_schedule, checkpoint
        if step_schedule == "learned":
            self.log_step_sizes = nn.Parameter(torch.empty(steps))
        self.grid = grid_shape(self.image_size, self.patch_size)
        self.num_patches = self.grid[0] * self.grid[1]
        pixels = channels * self.patch_size[0] * self.patch_size[1]
        self.token_std = 0.002 if released else 0.02
        self.position_init = position_init
        self.position_std = self.token_std if position_std is None else position_std
        self.encoder = nn.Linear(pixels, dim)
        self.decoder = nn.Linear(dim, pixels)
        self.cls_token = nn.Parameter(torch.empty(dim))
        self.mask_token = nn.Parameter(torch.empty(dim))
        self.position = nn.Parameter(torch.empty(1 + self.num_patches, dim))
        self._reset_tokens()
        self.block = EnergyTransformerBlock(
            dim,
            num_heads,
            head_dim,
            num_memories,
            self_attention=released if self_attention is None else self_attention,
            attention_init_std=self.token_std,
            **(block or {}),
        )
        self._reset_affine()

    def reset_parameters(self) -> None:
        """Initialise all parameters again, with the random numbers that a new model would draw."""
        self.encoder.reset_parameters()
        self.decoder.reset_parameters()
        self._reset_tokens()
        self.block.reset_parameters()
        self._reset_affine()

    @torch.no_grad()
    def _reset_tokens(self) -> None:
        for token in (self.cls_token, self.mask_token):
            token.normal_(std=self.token_std)
        self.position.normal_(std=self.position_std)
        if self.position_init == "sincos":
            self.position[1:] = sincos_positions(self.grid, self.position.shape[1]) * self.position_std
        if self.step_schedule == "learned":
            self.log_step_sizes.fill_(float(self.step_size)).log_()

    def _reset_affine(self) -> None:
        for affine in (self.encoder, self.decoder):
            nn.init.normal_(affine.weight, std=0.02)
            nn.init.zeros_(affine.bias)

    def embed(self, patches: Tensor, masked: Tensor) -> Tensor:
        """Initial tokens of patches (B, N, P), of which ``masked`` (B, N) bool are hidden: (B, 1 + N, D)."""
        tokens = torch.where(masked[..., None], self.mask_token.to(patches.dtype), self.encoder(patches))
        cls = self.cls_token.to(tokens.dtype).expand(tokens.shape[0], 1, -1)
        return torch.cat([cls, tokens], dim=1) + self.position

    def decode(self, tokens: Tensor) -> Tensor:
        """Patches of tokens without CLS: (..., D) -> (..., P); the layer norm of the block comes first."""
        return self.decoder(self.block.norm(tokens))

    def forward(self, images: Tensor, masked: Tensor) -> Tensor:
        """Reconstruction of every patch: images (B, C, H, W), masked (B, N) bool -> (B, N, P)."""
        tokens = self.embed(patchify(images, self.patch_size), masked)
        checkpoint = self.checkpoint and torch.is_grad_enabled()
        final = descend(self.block, tokens, self.steps, self.step_sizes(self.steps), checkpoint=checkpoint).x
        return self.decode(final[:, 1:])

    def step_sizes(self, steps: int) -> float | Tensor:
        """alpha of ``steps`` steps, one number or (steps,); learned ones go on with the last of them."""
        if self.step_schedule == "constant":
            return self.step_size
        if self.step_schedule == "decreasing":
            return decreasing(self.step_size, steps).to(self.position.device)
        learned = self.log_step_sizes.exp()
        return torch.cat([learned, learned[-1:].expand(max(0, steps - len(learned)))])[:steps]

    def trajectory(
        self,
        images: Tensor,
        masked: Tensor,
        steps: int | None = None,
        record: bool | Literal["energy"] = True,
    ) -> Descent:
        """The descent itself, recorded; ``states[:, :, 1:]`` are patch tokens for :meth:`decode`.

        ``steps`` are T unless given; ``record`` is that of :func:`et.core.descend`.
        """
        tokens = self.embed(patchify(images, self.patch_size), masked)
        steps = self.steps if steps is None else steps
        return descend(self.block, tokens, steps, self.step_sizes(steps), record=record)

    def complete(self, images: Tensor, masked: Tensor) -> Tensor:
        """The images with their masked patches replaced by the reconstruction: (B, C, H, W)."""
        return fill(images, self(images, masked), masked, self.patch_size)
