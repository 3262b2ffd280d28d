"""A network for nodes together with boosted trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from et.anomaly.model import AnomalyTransformer
from et.baselines.neighbour_trees import NeighbourTrees
from et.baselines.node_mlp import NodeMLP
from et.core import EdgeTopology
from et.utils.errors import ArgumentsOf

OfTrees = Annotated[Mapping[str, Any] | None, ArgumentsOf("et.baselines.neighbour_trees.NeighbourTrees")]


class Blend(nn.Module):
    """A network that is trained by gradient steps and trees that are fitted at once, on the same input. The score is
    the mean of their log-odds; the epoch of the network is the one with the best mean on the validation nodes.

    Args:
        network: Maps (features, topologies, nodes, known) to log-odds (n,).
        trees: Settings of :class:`NeighbourTrees`. If None, its defaults. The trees read known labels if ``network``
            does.
    """

    def __init__(self, network: nn.Module, trees: Mapping[str, Any] | None = None):
        super().__init__()
        self.takes_known_labels = network.takes_known_labels
        self.network = network
        self.trees = NeighbourTrees(**{**(trees or {}), "known_labels": network.takes_known_labels})
        self._latest: tuple[Tensor, Tensor | None, Tensor] | None = None  # features, known and log-odds of the trees

    @classmethod
    def of_et(
        cls, trees: OfTrees = None, **arguments: Annotated[Any, ArgumentsOf("et.anomaly.model.AnomalyTransformer")]
    ) -> Blend:
        """ET and trees. ``arguments`` are those of :class:`AnomalyTransformer`."""
        return cls(AnomalyTransformer(**arguments), trees)

    @classmethod
    def of_mlp(
        cls, trees: OfTrees = None, **arguments: Annotated[Any, ArgumentsOf("et.baselines.node_mlp.NodeMLP")]
    ) -> Blend:
        """An MLP and trees. ``arguments`` are those of :class:`NodeMLP`."""
        return cls(NodeMLP(**arguments), trees)

    @property
    def fitted(self) -> bool:
        return self.trees.fitted

    def fit(self, features: Tensor, topologies: Sequence[EdgeTopology], labels: Tensor, train: Tensor) -> None:
        """Grow the trees, see :meth:`NeighbourTrees.fit`."""
        self.trees.fit(features, topologies, labels, train)
        self._latest = None

    def forward(
        self,
        features: Tensor,
        topologies: Sequence[EdgeTopology],
        nodes: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Log-odds (n,): of the network alone in training mode, so that it does not learn to correct the trees.

        Args:
            features, topologies, nodes, known: As of the network's ``forward``.
        """
        log_odds = self.network(features, topologies, nodes, known)
        return log_odds if self.training else self._mean(log_odds, features, topologies, known)

    def score(
        self,
        features: Tensor,
        topologies: Sequence[EdgeTopology],
        nodes: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """:meth:`forward` in evaluation mode, (n,). A network that has ``score`` processes a large graph in blocks."""
        score = getattr(self.network, "score", self.network)
        return self._mean(score(features, topologies, nodes=nodes, known=known), features, topologies, known)

    def _mean(
        self, log_odds: Tensor, features: Tensor, topologies: Sequence[EdgeTopology], known: Tensor | None
    ) -> Tensor:
        # The trees say the same after every epoch.
        if self._latest is None or self._latest[0] is not features or not _equal(self._latest[1], known):
            self._latest = features, known, self.trees(features, topologies, known=known)
        return (log_odds + self._latest[2]) / 2


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))
