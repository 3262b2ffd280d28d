"""A multi-layer perceptron on the features of each node: the baseline that ignores the graph."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from et.core import EdgeTopology
from et.core.arguments import check_sizes


class NodeMLP(nn.Module):
    """Maps the features of a node to log-odds.

    Args:
        in_features: Number of node features F.
        hidden: Width of the hidden layers.
        layers: Number of linear layers, at least 1.
        dropout: Dropout probability after every hidden layer.
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
        """Log-odds (n,) of features (n, F); ``topologies`` and ``nodes`` are ignored."""
        return self.stages(features)[:, 0]
