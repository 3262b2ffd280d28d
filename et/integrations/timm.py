"""ET as an image classifier and backbone in timm's registry: ``timm.create_model("et_base_patch16_224")``.

The paper does not classify images. This is its image model (algorithm 1) with a linear head on the CLS token and the
interface that timm's training and feature extraction need. ``pretrained=True`` loads the authors' ImageNet weights.
They are of a model that completes images: there is no head unless ``num_classes`` is given.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from et.core import EnergyTransformerBlock, descend
from et.core.arguments import check_sizes

try:
    from timm.layers import PatchEmbed, resample_abs_pos_embed, resample_patch_embed, to_2tuple
    from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
    from timm.models._features import feature_take_indices
    from timm.models.vision_transformer import global_pool_nlc
except ModuleNotFoundError as error:
    message = "et.integrations.timm needs timm: pip install 'energy-transformer[timm]'"
    raise ModuleNotFoundError(message, name=error.name) from error

POOLS = ("token", "avg", "max", "avgmax", "")


class EnergyImageClassifier(nn.Module):
    """Patches and CLS token, T steps of one ET block, the block's layer norm, a linear head.

    Args:
        img_size: Height and width of the images in pixels: one number or two.
        patch_size: Height and width of a patch in pixels: one number or two.
        in_chans: Number of image channels.
        num_classes: Number of classes; 0 for features without a head.
        global_pool: Pooling of the tokens: ``"token"`` (CLS), ``"avg"``, ``"max"`` or ``"avgmax"`` (of the patches), or
            ``""`` (none: all tokens).
        embed_dim: Token dimension D.
        num_heads: Number of heads H.
        head_dim: Dimension Y of a head's queries and keys.
        num_memories: Number of memories M.
        depth: Number of steps T.
        step_size: Step size alpha.
        drop_rate: Dropout rate in front of the head.
        block: Further arguments of :class:`EnergyTransformerBlock`. If None, its defaults.

    Raises:
        ValueError: ``global_pool`` is unknown.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
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
        check_sizes(img_size=min(to_2tuple(img_size)), patch_size=min(to_2tuple(patch_size)), in_chans=in_chans)
        check_sizes(embed_dim=embed_dim)
        check_sizes(minimum=0, num_classes=num_classes, depth=depth)
        _check_pool(global_pool)
        self.num_classes, self.global_pool = num_classes, global_pool
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.depth, self.step_size, self.checkpointed, self.num_prefix_tokens = depth, step_size, False, 1
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.patch_embed.num_patches, embed_dim))
        self.block = EnergyTransformerBlock(embed_dim, num_heads, head_dim, num_memories, **(block or {}))
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        reduction = self.patch_embed.patch_size[0]
        self.feature_info = [{"module": "block", "num_chs": embed_dim, "reduction": reduction} for _ in range(depth)]
        self._reset_tokens()

    def _reset_tokens(self) -> None:
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.02)

    def reset_parameters(self) -> None:
        """Initialise all parameters again."""
        self.patch_embed.proj.reset_parameters()
        self.block.reset_parameters()
        if isinstance(self.head, nn.Linear):
            self.head.reset_parameters()
        self._reset_tokens()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.checkpointed = enable

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^cls_token|pos_embed|patch_embed", "blocks": [(r"^block", (0,))]}

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one of the model's device and dtype.

        Args:
            num_classes: Number of classes; 0 for features without a head.
            global_pool: Pooling, as at construction. If None, unchanged.

        Raises:
            ValueError: ``global_pool`` is unknown.
        """
        if global_pool is not None:
            _check_pool(global_pool)
            self.global_pool = global_pool
        self.num_classes = num_classes
        like = {"device": self.cls_token.device, "dtype": self.cls_token.dtype}
        self.head = nn.Linear(self.embed_dim, num_classes, **like) if num_classes else nn.Identity()
        self.head.train(self.training)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Change the size of images or patches; patch and position embeddings are resized. None: unchanged."""
        before = self.patch_embed.grid_size
        self.patch_embed.set_input_size(img_size=img_size, patch_size=patch_size)
        resized = resample_abs_pos_embed(self.pos_embed.detach(), list(self.patch_embed.grid_size), list(before))
        self.pos_embed = nn.Parameter(resized, requires_grad=self.pos_embed.requires_grad)
        for info in self.feature_info:
            info["reduction"] = self.patch_embed.patch_size[0]

    def embed(self, x: Tensor) -> Tensor:
        """Initial tokens of images, CLS first: (B, C, H, W) -> (B, 1 + N, D)."""
        x = self.patch_embed(x)  # (B, N, D)
        return torch.cat([self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1) + self.pos_embed

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised final tokens of images, CLS first: (B, C, H, W) -> (B, 1 + N, D)."""
        checkpoint = self.checkpointed and self.training
        x = descend(self.block, self.embed(x), self.depth, self.step_size, checkpoint=checkpoint).x
        return self.block.norm(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Any] | tuple[Tensor, list[Any]]:
        """Tokens after chosen steps of the descent, as timm's models return the outputs of chosen blocks.

        Args:
            x: Images, (B, C, H, W).
            indices: Steps, counted from 0: a list, or an int for the last n. If None, all.
            return_prefix_tokens: If True, each intermediate is a pair of it and the CLS token, (B, 1, D).
            norm: If True, apply the block's layer norm to the intermediates.
            stop_early: If True, take no step after the last chosen one.
            output_fmt: ``"NCHW"`` for (B, D, rows, columns), ``"NLC"`` for (B, N, D).
            intermediates_only: If True, return only the list.

        Returns:
            The normalised final tokens, (B, 1 + N, D), and the list of intermediates in the order of the steps.

        Raises:
            ValueError: ``output_fmt`` is unknown.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', not {output_fmt!r}")
        chosen, last = feature_take_indices(self.depth, indices)
        steps = last + 1 if stop_early else self.depth
        checkpoint = self.checkpointed and self.training
        result = descend(self.block, self.embed(x), steps, self.step_size, record="states", checkpoint=checkpoint)
        intermediates = []
        for index in sorted(set(chosen)):
            state = result.states[index + 1].to(result.x.dtype)  # (B, 1 + N, D)
            state = self.block.norm(state) if norm else state
            cls, patches = state[:, : self.num_prefix_tokens], state[:, self.num_prefix_tokens :]
            if output_fmt == "NCHW":
                patches = patches.mT.unflatten(-1, self.patch_embed.grid_size).contiguous()
            intermediates.append((patches, cls) if return_prefix_tokens else patches)
        return intermediates if intermediates_only else (self.block.norm(result.x), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the steps after the last chosen one, and the head; returns the chosen steps as a list.

        ``prune_norm`` is ignored: every step needs the layer norm.
        """
        chosen, last = feature_take_indices(self.depth, indices)
        self.depth = last + 1
        if prune_head:
            self.reset_classifier(0, "")
        return chosen

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of normalised tokens, or with ``pre_logits`` the pooled tokens: (B, 1 + N, D) -> (B, K) or (B, D)."""
        x = self.head_drop(global_pool_nlc(x, self.global_pool, self.num_prefix_tokens))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images: (B, C, H, W) -> (B, K)."""
        return self.forward_head(self.forward_features(x))


def _check_pool(global_pool: str) -> None:
    if global_pool not in POOLS:
        known = ", ".join(repr(pool) for pool in POOLS)
        raise ValueError(f"global_pool must be one of {known}, not {global_pool!r}")


def checkpoint_filter_fn(state_dict: dict[str, Any], model: EnergyImageClassifier) -> dict[str, Tensor]:
    """Weights of a model for other images or patches, with patch and position embeddings resized to fit ``model``.

    Args:
        state_dict: Weights, or a checkpoint that holds them under ``"model"`` or ``"state_dict"``.
        model: Model that will load the result.

    Raises:
        ValueError: The positions are not those of a square grid, so that their rows and columns are unknown.
    """
    state_dict = state_dict.get("model", state_dict)
    state_dict = dict(state_dict.get("state_dict", state_dict))
    kernel = state_dict.get("patch_embed.proj.weight")
    if kernel is not None and kernel.shape[-2:] != model.patch_embed.proj.weight.shape[-2:]:
        size = list(model.patch_embed.proj.weight.shape[-2:])
        state_dict["patch_embed.proj.weight"] = resample_patch_embed(kernel, size)
    positions = state_dict.get("pos_embed")
    if positions is not None and positions.shape[1] != model.pos_embed.shape[1]:
        patches = positions.shape[1] - model.num_prefix_tokens
        if math.isqrt(patches) ** 2 != patches:
            raise ValueError(
                f"the weights hold positions of {patches} patches, which form no square grid: build the model for the "
                "images they were trained on, load them, and call set_input_size"
            )
        state_dict["pos_embed"] = resample_abs_pos_embed(positions, list(model.patch_embed.grid_size))
    return state_dict


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
    """ET-Base: D 768, H 12, Y 64, M 3072, T 12, the sizes of ViT-Base; published weights allow self-attention."""
    overlay = kwargs.get("pretrained_cfg_overlay") or {}
    if pretrained and not {"file", "url", "hf_hub_id", "state_dict"} & overlay.keys():  # no weights of the caller's
        from et.integrations.pretrained import timm_state

        kwargs["pretrained_cfg_overlay"] = {"state_dict": timm_state(), "num_classes": 0, **overlay}
        kwargs["block"] = {"self_attention": True} | (kwargs.get("block") or {})
    model = build_model_with_cfg(
        EnergyImageClassifier,
        "et_base_patch16_224",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": min(3, kwargs.get("depth", 12)), "feature_cls": "getter"},
        **kwargs,
    )
    getattr(model, "pretrained_cfg", {}).pop("state_dict", None)  # the weights are in the model now
    return model
