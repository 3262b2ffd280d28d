"""A multi-layer perceptron on each node's own features: what can be told without the graph."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from et.core import EdgeTopology
from et.core.arguments import check_sizes


class NodeMLP(nn.Module):
    """Features to log-odds, one node at a time.

    Args:
        in_features: F.
        hidden: width of the hidden layers.
        layers: number of linear layers, at least 1.
        dropout: after every hidden layer.
    """

    def __init__(self, in_features: int, hidden: int = 64, layers: int = 3, dropout: float = 0.0):
        super().__init__()
        check_sizes(in_features=in_features, hidden=hidden, layers=layers)
        widths = [in_features] + [hidden] * (layers - 1)
        stages: list[nn.Module] = []
        for before, after in pairwise(widths):
            stages += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
        self.stages = nn.Sequential(*stages, nn.Linear(widths[-1], 1))

    def forward(self, features: Tensor, topologies: Sequence[EdgeTopology], nodes: Tensor | None = None) -> Tensor:
        """(n, F) -> (n,); topologies and node ids play no part."""
        return self.stages(features)[:, 0]
