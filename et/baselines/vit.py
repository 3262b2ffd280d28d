"""Vision transformers for image completion, from timm's modules: independent layers, or one shared block."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from et.core.arguments import check_sizes
from et.inpainting.model import sincos_positions
from et.inpainting.patches import fill, grid_shape, pair


class InpaintingViT(nn.Module):
    """A ViT (Dosovitskiy et al. 2021) with the interface of :class:`et.inpainting.model.InpaintingET` (tables 15 and
    16).

    CLS and MASK tokens, trained positions, final layer norm and affine decoder are the same. Instead of the descent
    there are ``depth`` pre-norm blocks of timm's VisionTransformer. With ``shared``, one block is applied ``depth``
    times, as in ALBERT (Lan et al. 2020).

    Args:
        image_size, patch_size: Size in pixels, one number or (height, width). The image is a multiple of the patch.
        channels: Number of colour channels.
        dim: Token dimension D.
        depth: Number of block applications.
        num_heads: Number of heads of dimension D / num_heads.
        mlp_ratio: Hidden width of the feed-forward networks as a multiple of D.
        shared: If True, all layers share the weights of one block.
        bias: If False, no operation has a bias, as table 15 counts parameters.
        position_init, position_std: Initial position biases, as in InpaintingET.

    Raises:
        ValueError: The image is not a multiple of the patch, or ``position_init`` is unknown.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        channels: int = 3,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        shared: bool = False,
        bias: bool = True,
        position_init: Literal["normal", "sincos"] = "normal",
        position_std: float = 0.02,
    ):
        super().__init__()
        if position_init not in ("normal", "sincos"):
            raise ValueError(f"position_init must be 'normal' or 'sincos', not {position_init!r}")
        check_sizes(channels=channels, dim=dim, depth=depth, num_heads=num_heads)
        from timm.models.vision_transformer import VisionTransformer

        self.image_size, self.patch_size, self.channels = pair(image_size), pair(patch_size), channels
        self.depth, self.shared = depth, shared
        self.grid = grid_shape(self.image_size, self.patch_size)
        self.num_patches = self.grid[0] * self.grid[1]
        self.vit = VisionTransformer(
            self.image_size, self.patch_size, channels, num_classes=0, global_pool="", embed_dim=dim,
            depth=1 if shared else depth, num_heads=num_heads, mlp_ratio=mlp_ratio, qkv_bias=bias, proj_bias=bias,
            norm_layer=partial(nn.LayerNorm, eps=1e-6, bias=bias),
        )  # fmt: skip
        self.mask_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.decoder = nn.Linear(dim, channels * self.patch_size[0] * self.patch_size[1], bias=bias)
        nn.init.normal_(self.decoder.weight, std=0.02)
        if bias:
            nn.init.zeros_(self.decoder.bias)
        else:
            self.vit.patch_embed.proj.register_parameter("bias", None)  # timm gives it one whatever it is told
        position = self.vit.pos_embed.data
        position.normal_(std=position_std)
        if position_init == "sincos":
            position[0, 1:] = sincos_positions(self.grid, dim) * position_std

    @property
    def blocks(self) -> nn.Sequential:
        """Blocks with their own weights: ``depth`` of them, or one if shared."""
        return self.vit.blocks

    def embed(self, images: Tensor, masked: Tensor) -> Tensor:
        """Initial tokens (B, 1 + N, D) of images (B, C, H, W) whose patches ``masked`` (B, N) bool are hidden."""
        tokens = self.vit.patch_embed(images)
        tokens = torch.where(masked[..., None], self.mask_token.to(tokens.dtype), tokens)
        cls = self.vit.cls_token.to(tokens.dtype).expand(len(tokens), -1, -1)
        return torch.cat([cls, tokens], dim=1) + self.vit.pos_embed

    def forward(self, images: Tensor, masked: Tensor) -> Tensor:
        """Reconstruction of every patch, (B, N, P), from images (B, C, H, W) and masked (B, N) bool."""
        tokens = self.embed(images, masked)
        for block in [self.blocks[0]] * self.depth if self.shared else self.blocks:
            tokens = block(tokens)
        return self.decoder(self.vit.norm(tokens[:, 1:]))

    def complete(self, images: Tensor, masked: Tensor) -> Tensor:
        """Images whose masked patches are replaced by the reconstruction, (B, C, H, W)."""
        return fill(images, self(images, masked), masked, self.patch_size)
