"""The Energy Transformer itself: no task, no training, no configuration. Start reading at :mod:`et.core.reference`."""

from et.core.attention import EnergyAttention
from et.core.block import EnergyTransformerBlock
from et.core.descent import Descent, decreasing, descend
from et.core.hopfield import HopfieldNetwork
from et.core.norm import EnergyLayerNorm
from et.core.topology import AllPairs, EdgeTopology, Topology
from et.core.transformer import EnergyTransformer

__all__ = [
    "AllPairs",
    "Descent",
    "EdgeTopology",
    "EnergyAttention",
    "EnergyLayerNorm",
    "EnergyTransformer",
    "EnergyTransformerBlock",
    "HopfieldNetwork",
    "Topology",
    "decreasing",
    "descend",
]
