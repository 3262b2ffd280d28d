"""ET as an image classifier and backbone in timm's registry: ``timm.create_model("et_base_patch16_224")``.

The paper classifies no images; this is its image model (algorithm 1) with the CLS token read by a linear head, behind
the interface that timm's training and feature-extraction code expects. There are no pretrained weights.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import PatchEmbed, to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from et.core import EnergyTransformerBlock, descend
from et.core.arguments import check_sizes


class EnergyImageClassifier(nn.Module):
    """Patches and CLS token, T steps of one ET block, the block's layer norm, a linear head on the CLS token.

    Args:
        img_size, patch_size, in_chans: of the images.
        num_classes: 0 for features without a head.
        global_pool: ``token`` (CLS), ``avg`` (mean of the patches) or ``""`` (all tokens).
        embed_dim, num_heads, head_dim, num_memories: D, H, Y and M.
        depth: steps T.
        step_size: alpha.
        drop_rate: dropout in front of the head.
        block: further arguments of :class:`EnergyTransformerBlock`.
    """

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 768,
        num_heads: int = 12,
        head_dim: int = 64,
        num_memories: int = 3072,
        depth: int = 12,
        step_size: float = 0.1,
        drop_rate: float = 0.0,
        block: dict[str, Any] | None = None,
    ):
        super().__init__()
        if global_pool not in ("token", "avg", ""):
            raise ValueError(f"global_pool must be 'token', 'avg' or '', not {global_pool!r}")
        check_sizes(img_size=min(to_2tuple(img_size)), patch_size=min(to_2tuple(patch_size)), in_chans=in_chans)
        check_sizes(embed_dim=embed_dim)
        check_sizes(minimum=0, num_classes=num_classes, depth=depth)
        self.num_classes, self.global_pool = num_classes, global_pool
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.depth, self.step_size, self.checkpointed, self.num_prefix_tokens = depth, step_size, False, 1
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + self.patch_embed.num_patches, embed_dim))
        self.block = EnergyTransformerBlock(embed_dim, num_heads, head_dim, num_memories, **(block or {}))
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.checkpointed = enable

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token"}

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.head = nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> normalised final tokens, CLS first: (B, 1 + N, D)."""
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1) + self.pos_embed
        x = descend(self.block, x, self.depth, self.step_size, checkpoint=self.checkpointed and self.training).x
        return self.block.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.global_pool:
            x = x[:, 0] if self.global_pool == "token" else x[:, self.num_prefix_tokens :].mean(1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


default_cfgs = generate_default_cfgs(
    {
        "et_base_patch16_224.untrained": {
            "url": "", "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": None, "crop_pct": 0.9,
            "interpolation": "bicubic", "fixed_input_size": True, "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225), "first_conv": "patch_embed.proj", "classifier": "head",
        }
    }
)  # fmt: skip


@register_model
def et_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> EnergyImageClassifier:
    """ET-Base: D 768, H 12, Y 64, M 3072, T 12, the sizes of ViT-Base."""
    return build_model_with_cfg(EnergyImageClassifier, "et_base_patch16_224", pretrained, **kwargs)
