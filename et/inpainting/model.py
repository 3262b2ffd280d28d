"""The image model: affine encoder, CLS and MASK tokens, positions, one ET block, affine decoder (appendix B, H)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from et.core import Descent, EnergyTransformerBlock, decreasing, descend
from et.core.arguments import check_sizes
from et.inpainting.patches import fill, grid_shape, pair, patchify
from et.utils.errors import ArgumentsOf


def sincos_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """Sines and cosines of each patch's row and column, (rows * columns, dim), with root mean square 1.

    The wavelengths form a geometric series from 1.5 patches to four times the longer side of the grid.

    Raises:
        ValueError: ``dim`` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"sincos positions need a token dimension that is a multiple of 4, not {dim}")
    wavelength = 1.5 * (4 * max(grid) / 1.5) ** torch.linspace(0, 1, dim // 4)
    row, column = torch.meshgrid(*(torch.arange(side).float() for side in grid), indexing="ij")
    angles = [2 * torch.pi * place.flatten()[:, None] / wavelength for place in (row, column)]
    return 2**0.5 * torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


def followed_by(first: Descent, second: Descent) -> Descent:
    """Concatenate two descents; the state between them is recorded once, by the second."""
    names = ("energies", "attention_energies", "hopfield_energies", "states")
    pairs = {name: (getattr(first, name), getattr(second, name)) for name in names}
    return Descent(second.x, **{name: None if b is None else torch.cat([a[:-1], b]) for name, (a, b) in pairs.items()})


def lecun_normal_(weight: Tensor) -> None:
    """Fill a weight (outputs, inputs) from a normal distribution truncated at two deviations, with deviation
    1/sqrt(inputs).
    """
    std = weight.shape[1] ** -0.5 / 0.87962566103423978  # the deviation of a normal distribution that is cut off there
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


class InpaintingET(nn.Module):
    """Completes images with masked patches by T steps of one ET block (algorithm 1). https://arxiv.org/abs/2302.07253

    The CLS token precedes the patch tokens. The released code has it and the text does not; both fidelities keep it.
    The layer norm of the decoder (appendix B) is that of the block, as in the released code. ``fidelity`` chooses the
    remaining differences: self-attention (eq. 3 in the paper, eq. 13 in the released code) and the initial standard
    deviations (paper: 0.02 for all; released: 0.002 for attention, CLS, MASK and positions, 1/sqrt(fan_in) for encoder
    and decoder).

    Args:
        image_size, patch_size: Size in pixels, one number or (height, width). The image is a multiple of the patch.
        channels: Number of colour channels.
        dim: Token dimension D.
        num_heads, head_dim: H and Y.
        num_memories: Number of memories M (the paper's K).
        steps: Number of steps T.
        step_size: Step size alpha = dt / tau.
        step_schedule: ``constant``, as in the paper; ``decreasing``: ``step_size`` / sqrt(1 + t); ``learned``: T
            positive trained numbers, initially ``step_size``.
        fidelity: ``paper`` or ``released``.
        self_attention: Whether a token attends to itself. If None, as ``fidelity`` has it.
        position_init: Initial values of the trained position biases: independent normal numbers, as in the paper, or
            sines and cosines of row and column, which make neighbours similar from the first step on.
        position_std: Initial root mean square of the position biases. If None, as ``fidelity`` has it. The layer norm
            divides a token by its size, so a patch keeps its brightness and contrast only if its position bias has a
            comparable size.
        checkpoint: If True, store only the tokens of each step in training and recompute the steps in the backward
            pass: less memory, more time, same results.
        affine_init_std: Initial standard deviation of encoder and decoder. ``fan_in``: 1/sqrt(fan_in) of a normal
            distribution truncated at two deviations (Flax's ``lecun_normal``). If None, as ``fidelity`` has it (paper:
            0.02; released: ``fan_in``).
        num_blocks: Number S of consecutive blocks of T steps each (the authors' PyTorch port). Algorithm 1 has one.
        decoder_norm_eps: If set, the decoder has its own layer norm with this eps, and a gain and a bias for every
            element (the authors' PyTorch port). If None, it uses the block's.
        block: Further arguments of :class:`EnergyTransformerBlock`.

    Raises:
        ValueError: The image is not a multiple of the patch; ``fidelity``, ``position_init``, ``step_schedule`` or
            ``affine_init_std`` is unknown.
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
        affine_init_std: float | Literal["fan_in"] | None = None,
        num_blocks: int = 1,
        decoder_norm_eps: float | None = None,
        block: Annotated[dict[str, Any] | None, ArgumentsOf("et.core.block.EnergyTransformerBlock")] = None,
    ):
        super().__init__()
        if fidelity not in ("paper", "released"):
            raise ValueError(f"fidelity must be 'paper' or 'released', not {fidelity!r}")
        if position_init not in ("normal", "sincos"):
            raise ValueError(f"position_init must be 'normal' or 'sincos', not {position_init!r}")
        if isinstance(affine_init_std, str) and affine_init_std != "fan_in":
            raise ValueError(f"affine_init_std must be a number, 'fan_in' or null, not {affine_init_std!r}")
        if step_schedule not in ("constant", "decreasing", "learned"):
            raise ValueError(f"step_schedule must be 'constant', 'decreasing' or 'learned', not {step_schedule!r}")
        check_sizes(channels=channels, dim=dim, num_blocks=num_blocks)
        check_sizes(minimum=0, steps=steps)
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
        options = {
            "self_attention": released if self_attention is None else self_attention,
            "attention_init_std": self.token_std,
            **(block or {}),
        }
        self.block, *later = (
            EnergyTransformerBlock(dim, num_heads, head_dim, num_memories, **options) for _ in range(num_blocks)
        )
        self.later_blocks = nn.ModuleList(later)
        self.decoder_norm = None if decoder_norm_eps is None else nn.LayerNorm(dim, eps=decoder_norm_eps)
        self.affine_init_std = affine_init_std
        if affine_init_std is None:
            self.affine_init_std = "fan_in" if released else 0.02
        self._reset_affine()

    def reset_parameters(self) -> None:
        """Initialise all parameters again, with the same random draws as a new model."""
        self.encoder.reset_parameters()
        self.decoder.reset_parameters()
        self._reset_tokens()
        for block in (self.block, *self.later_blocks):
            block.reset_parameters()
        if self.decoder_norm is not None:
            self.decoder_norm.reset_parameters()
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
            if self.affine_init_std == "fan_in":
                lecun_normal_(affine.weight)
            else:
                nn.init.normal_(affine.weight, std=self.affine_init_std)
            nn.init.zeros_(affine.bias)

    def embed(self, patches: Tensor, masked: Tensor) -> Tensor:
        """Initial tokens (B, 1 + N, D) of patches (B, N, P), of which ``masked`` (B, N) bool are hidden."""
        tokens = torch.where(masked[..., None], self.mask_token.to(patches.dtype), self.encoder(patches))
        cls = self.cls_token.to(tokens.dtype).expand(tokens.shape[0], 1, -1)
        return torch.cat([cls, tokens], dim=1) + self.position

    def decode(self, tokens: Tensor) -> Tensor:
        """Patches (..., P) of tokens (..., D) without CLS; the layer norm is applied first."""
        return self.decoder((self.decoder_norm or self.block.norm)(tokens))

    def forward(self, images: Tensor, masked: Tensor) -> Tensor:
        """Reconstruction of every patch, (B, N, P), from images (B, C, H, W) and masked (B, N) bool."""
        tokens = self.embed(patchify(images, self.patch_size), masked)
        checkpoint = self.checkpoint and torch.is_grad_enabled()
        for block in (self.block, *self.later_blocks):
            tokens = descend(block, tokens, self.steps, self.step_sizes(self.steps), checkpoint=checkpoint).x
        return self.decode(tokens[:, 1:])

    def step_sizes(self, steps: int) -> float | Tensor:
        """Step size alpha of ``steps`` steps, one number or (steps,); past T the last learned one is repeated."""
        if self.step_schedule == "constant":
            return self.step_size
        if self.step_schedule == "decreasing":
            return decreasing(self.step_size, steps).to(self.position.device)
        learned = self.log_step_sizes.exp()
        return torch.cat([learned, learned[-1:].expand(max(0, steps - len(learned)))])[:steps]

    def trajectory(
        self, images: Tensor, masked: Tensor, steps: int | None = None, record: bool | Literal["energy"] = True
    ) -> Descent:
        """The recorded descent; ``states[:, :, 1:]`` are patch tokens for :meth:`decode`.

        Args:
            images: Images, (B, C, H, W).
            masked: Mask of the hidden patches, (B, N) bool.
            steps: Number of steps of each block. If None, T.
            record: See :func:`et.core.descend`. The energy of a state is that of the block that takes the next step.
        """
        tokens = self.embed(patchify(images, self.patch_size), masked)
        steps = self.steps if steps is None else steps
        found = descend(self.block, tokens, steps, self.step_sizes(steps), record=record)
        for block in self.later_blocks:
            found = followed_by(found, descend(block, found.x, steps, self.step_sizes(steps), record=record))
        return found

    def complete(self, images: Tensor, masked: Tensor) -> Tensor:
        """Images whose masked patches are replaced by the reconstruction, (B, C, H, W)."""
        return fill(images, self(images, masked), masked, self.patch_size)
