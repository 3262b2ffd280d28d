"""Vision transformers that complete images, from timm's modules: feed-forward, and with one block for all layers."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from et.core.arguments import check_sizes
from et.inpainting.model import sincos_positions
from et.inpainting.patches import fill, grid_shape, pair


class InpaintingViT(nn.Module):
    """A ViT (Dosovitskiy et al. 2021) in the place of :class:`et.inpainting.model.InpaintingET` (tables 15 and 16).

    CLS and MASK tokens, trained positions, a final layer norm and an affine decoder are as there; between them stand
    ``depth`` pre-norm blocks of timm's VisionTransformer instead of the descent. With ``shared``, one block is applied
    ``depth`` times, as in ALBERT (Lan et al. 2020).

    Args:
        image_size, patch_size: in pixels, one number or (height, width); the image a multiple of the patch.
        channels: colour channels of the image.
        dim: token dimension D.
        depth: blocks that a token passes.
        num_heads: of D / num_heads dimensions each.
        mlp_ratio: hidden width of the blocks' feed-forward networks, as a multiple of D.
        shared: one block's weights for all layers.
        bias: ``False`` takes the bias off every operation, as table 15 counts.
        position_init, position_std: initial position biases, as InpaintingET has them.

    Raises:
        ValueError: the image is no multiple of the patch; ``position_init`` is unknown.
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
        """The blocks that have weights of their own: ``depth`` of them, or one."""
        return self.vit.blocks

    def embed(self, images: Tensor, masked: Tensor) -> Tensor:
        """Initial tokens of images (B, C, H, W), of which patches ``masked`` (B, N) bool are hidden: (B, 1 + N, D)."""
        tokens = self.vit.patch_embed(images)
        tokens = torch.where(masked[..., None], self.mask_token.to(tokens.dtype), tokens)
        cls = self.vit.cls_token.to(tokens.dtype).expand(len(tokens), -1, -1)
        return torch.cat([cls, tokens], dim=1) + self.vit.pos_embed

    def forward(self, images: Tensor, masked: Tensor) -> Tensor:
        """Reconstruction of every patch: images (B, C, H, W), masked (B, N) bool -> (B, N, P)."""
        tokens = self.embed(images, masked)
        for block in [self.blocks[0]] * self.depth if self.shared else self.blocks:
            tokens = block(tokens)
        return self.decoder(self.vit.norm(tokens[:, 1:]))

    def complete(self, images: Tensor, masked: Tensor) -> Tensor:
        """The images with their masked patches replaced by the reconstruction: (B, C, H, W)."""
        return fill(images, self(images, masked), masked, self.patch_size)
