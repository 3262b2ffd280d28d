"""A multi-layer perceptron on the features of each node: the baseline that ignores the graph."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from et.anomaly.known_labels import check_label_hops, with_label_counts
from et.core import EdgeTopology
from et.core.arguments import check_sizes


class NodeMLP(nn.Module):
    """Maps the features of a node to log-odds.

    Args:
        in_features: Number of node features F.
        hidden: Width of the hidden layers.
        layers: Number of linear layers, at least 1.
        dropout: Dropout probability after every hidden layer.
        known_labels: Append the counts of neighbours with a known label (see :mod:`et.anomaly.known_labels`).
        label_hops: With ``known_labels``: 1, or 2 to append :func:`et.anomaly.known_labels.label_rates` as well.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int = 64,
        layers: int = 3,
        dropout: float = 0.0,
        known_labels: bool = False,
        label_hops: Literal[1, 2] = 1,
    ):
        super().__init__()
        check_sizes(in_features=in_features, hidden=hidden, layers=layers)
        self.takes_known_labels, self.label_hops = known_labels, check_label_hops(label_hops, known_labels)
        widths = [in_features + 2 * known_labels * label_hops] + [hidden] * (layers - 1)
        stages: list[nn.Module] = []
        for before, after in pairwise(widths):
            stages += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
        self.stages = nn.Sequential(*stages, nn.Linear(widths[-1], 1))

    def forward(
        self,
        features: Tensor,
        topologies: Sequence[EdgeTopology],
        nodes: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Log-odds (n,) of features (n, F). ``topologies`` only serves to count ``known`` labels, (n,)."""
        inputs = with_label_counts(features, topologies, known, self.takes_known_labels, self.label_hops)
        return self.stages(inputs)[:, 0]
