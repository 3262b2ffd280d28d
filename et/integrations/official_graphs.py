"""The authors' saved graph models, which Flax wrote, in this project's form."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from et.integrations.flax_file import read_flax, take
from et.utils.errors import UserError

# Names in this project's state, and where the file has them; of a block, with its number in the place of N.
NAMES = {
    "encoder.weight": "encoder/kernel",
    "encoder.bias": "encoder/bias",
    "position.weight": "pos_pj/kernel",
    "position.bias": "pos_pj/bias",
    "adjacency.weight": "adj_pj/kernel",
    "adjacency.bias": "adj_pj/bias",
    "head.weight": "decoder/kernel",
    "head.bias": "decoder/bias",
    "cls": "cls_token",
}
BLOCK = {
    "blocks.N.norm.gamma": "encode_norm_N/gamma",
    "blocks.N.norm.delta": "encode_norm_N/bias",
    "blocks.N.attention.w_query": "encode_block_N/attn/Wq",
    "blocks.N.attention.w_key": "encode_block_N/attn/Wk",
    "blocks.N.attention.beta": "encode_block_N/attn/betas",
    "blocks.N.hopfield.memories": "encode_block_N/chn/proj/kernel",
    "head_mix.N": "encode_block_N/attn/Hw",
}
# The convolution, and what rebuilds the edge features of MNIST and CIFAR10; a model may be without.
OPTIONAL = {"kernel": "conv/kernel", "edge_decoder.weight": "Dense_0/kernel"}


def load_official_graph_model(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments and state of the :class:`GraphEnergyTransformer` that a saved model holds.

    The arguments are those that the weights show. Steps, step size and noise are not among them.

    Raises:
        UserError: The file is absent or damaged, would execute code, or holds another model.
    """
    arrays = read_flax(path)
    found = (re.fullmatch(r"encode_block_(\d+)/attn/Wq", name) for name in arrays)
    blocks = 1 + max((int(match[1]) for match in found if match), default=0)
    names = NAMES | {key: name for key, name in OPTIONAL.items() if name in arrays}
    for number in range(blocks):
        names |= {key.replace("N", str(number)): name.replace("N", str(number)) for key, name in BLOCK.items()}
    state = {key: _turned(key, value) for key, value in take(arrays, names, path, "the authors' graph model").items()}
    heads, head_dim, dim = state["blocks.0.attention.w_query"].shape
    if "kernel" in state and state["kernel"].shape != (heads, 3, 3):
        raise UserError(f"{path} has a convolution of {tuple(arrays['conv/kernel'].shape)}: (3, 3, 1, heads) is read")
    return {
        "dim": dim, "num_heads": heads, "head_dim": head_dim, "num_blocks": blocks,
        "num_memories": len(state["blocks.0.hopfield.memories"]), "num_outputs": len(state["head.weight"]),
        "num_eigenvectors": state["position.weight"].shape[1], "in_features": state["encoder.weight"].shape[1],
        "conv": "3x3" if "kernel" in state else "none", "edge_reconstruction": "edge_decoder.weight" in state,
    }, state  # fmt: skip


def _turned(key: str, value: Tensor) -> Tensor:
    """An array as this project's state has it: Flax's matrices act from the right."""
    if key == "kernel":  # (3, 3, 1, H)
        return value.flatten(2).permute(2, 0, 1).contiguous() if value.dim() == 4 else value
    if key.endswith(("weight", "memories")):
        return value.T.contiguous()
    if key.endswith("gamma"):
        return value.reshape(())
    return value.flatten() if key == "cls" else value
