"""Sizes that are none are refused by name, wherever a module is built."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from et.anomaly.model import AnomalyTransformer
from et.baselines.bwgnn import BWGNN
from et.baselines.graph_networks import GAT, GIN, GraphTransformer
from et.baselines.neighbour_trees import NeighbourTrees
from et.baselines.node_mlp import NodeMLP
from et.baselines.node_transformer import NodeTransformer
from et.baselines.vit import InpaintingViT
from et.core import EnergyAttention, EnergyLayerNorm, EnergyTransformer, EnergyTransformerBlock, HopfieldNetwork
from et.core.arguments import check_given, check_sizes
from et.graphs.model import GraphEnergyTransformer
from et.inpainting.model import InpaintingET
from et.inpainting.photos import Photos
from et.integrations.pyg import EnergyConv
from et.integrations.timm import EnergyImageClassifier

BLOCK = {"dim": 8, "num_heads": 2, "head_dim": 4, "num_memories": 8}
IMAGES = {"image_size": 8, "patch_size": 4, "channels": 3}
# What to build each module from, and which of that may be 0.
MODULES = {
    EnergyLayerNorm: ({"dim": 8}, ()),
    EnergyAttention: ({"dim": 8, "num_heads": 2, "head_dim": 4}, ()),
    HopfieldNetwork: ({"dim": 8, "num_memories": 8}, ()),
    EnergyTransformerBlock: (BLOCK, ()),
    EnergyTransformer: ({**BLOCK, "steps": 1, "step_size": 0.1}, ("steps",)),
    EnergyConv: ({"in_channels": 8, "heads": 2, "head_dim": 4, "memories": 8, "steps": 1}, ("steps",)),
    InpaintingET: ({**BLOCK, **IMAGES, "steps": 1, "num_blocks": 1}, ("steps",)),
    AnomalyTransformer: (
        {**BLOCK, "in_features": 3, "num_nodes": 5, "num_relations": 1, "num_blocks": 1, "mlp_dim": 4, "steps": 1},
        ("steps", "mlp_dim"),
    ),
    GraphEnergyTransformer: (
        {**BLOCK, "in_features": 3, "edge_features": 2, "num_outputs": 2, "num_blocks": 1, "num_eigenvectors": 2,
         "steps": 1},
        ("steps", "edge_features"),
    ),
    EnergyImageClassifier: (
        {"img_size": 8, "patch_size": 4, "in_chans": 3, "embed_dim": 8, "num_heads": 2, "head_dim": 4,
         "num_memories": 8, "depth": 1, "num_classes": 2},
        ("depth", "num_classes"),
    ),
    InpaintingViT: ({**IMAGES, "dim": 8, "depth": 1, "num_heads": 2}, ()),
    GIN: ({"in_features": 3, "num_outputs": 2, "hidden": 8, "num_layers": 1}, ()),
    GAT: (
        {"in_features": 3, "edge_features": 0, "num_outputs": 2, "hidden": 8, "num_heads": 2, "num_layers": 1},
        ("edge_features",),
    ),
    GraphTransformer: (
        {"in_features": 3, "edge_features": 0, "num_outputs": 2, "num_eigenvectors": 2, "hidden": 8, "num_heads": 2,
         "num_layers": 1},
        ("edge_features",),
    ),
    NodeMLP: ({"in_features": 3, "hidden": 4, "layers": 2}, ()),
    NodeTransformer: ({"in_features": 3, "dim": 8, "num_heads": 2, "layers": 1}, ()),
    BWGNN: ({"in_features": 3, "hidden": 4, "order": 1}, ("order",)),
    NeighbourTrees: ({"hops": 1, "rounds": 2, "bags": 1}, ("hops",)),
    Photos: ({"image_size": 32, "crops_per_epoch": 2, "levels": 1}, ()),
}  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_each_size_of_0_or_below_is_refused_by_its_name(module):
    arguments, may_be_0 = MODULES[module]
    module(**arguments)
    for name in (name for name, value in arguments.items() if isinstance(value, int)):
        for value in (0, -1) if name not in may_be_0 else (-1,):
            with pytest.raises(ValueError, match=rf"^{name} must be a whole number of at least \d, not {value}$"):
                module(**{**arguments, name: value})
    for name in may_be_0:
        module(**{**arguments, name: 0})


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_no_size_of_a_module_is_left_out(module):
    """A parameter that is annotated as a whole number, and is no seed or width with a check of its own, is above."""
    numbers = {name for name, p in inspect.signature(module).parameters.items() if p.annotation == "int"}
    unchecked = {"seed", "max_leaf_nodes", "min_samples_leaf", "memories_per_dim"}
    assert numbers - unchecked <= MODULES[module][0].keys()


def test_whole_numbers_of_any_kind_are_sizes_and_others_are_not():
    check_sizes(a=1, b=np.int64(3))
    check_given(a=None, b=1)
    for value in (1.0, True, "3", None):
        with pytest.raises(ValueError, match="b must be a whole number"):
            check_sizes(a=1, b=value)
