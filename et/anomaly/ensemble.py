"""Ensembles of networks for nodes. Boosted trees and random forests are ensembles already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from et.anomaly.model import AnomalyTransformer
from et.baselines.node_mlp import NodeMLP
from et.core import EdgeTopology
from et.core.arguments import check_sizes
from et.utils.errors import ArgumentsOf


class Ensemble(nn.Module):
    """Networks of one kind with different initial weights. Each is trained by its own loss; the score is their mean.

    All networks see the same batches and the same masks of known labels; dropout is drawn for each. One epoch is
    chosen for all of them.

    Args:
        networks: The members, at least one. Each maps (features, topologies, nodes, known) to log-odds (n,).
    """

    def __init__(self, networks: Iterable[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(networks)
        check_sizes(members=len(self.networks))
        self.takes_known_labels = self.networks[0].takes_known_labels

    @classmethod
    def of_et(
        cls, members: int, **arguments: Annotated[Any, ArgumentsOf("et.anomaly.model.AnomalyTransformer")]
    ) -> Ensemble:
        """``members`` ETs. ``arguments`` are those of :class:`AnomalyTransformer`."""
        return cls(AnomalyTransformer(**arguments) for _ in range(members))

    @classmethod
    def of_mlp(
        cls, members: int, **arguments: Annotated[Any, ArgumentsOf("et.baselines.node_mlp.NodeMLP")]
    ) -> Ensemble:
        """``members`` MLPs. ``arguments`` are those of :class:`NodeMLP`."""
        return cls(NodeMLP(**arguments) for _ in range(members))

    def forward(
        self,
        features: Tensor,
        topologies: Sequence[EdgeTopology],
        nodes: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Log-odds of each member (n, members) in training mode, their mean (n,) in evaluation mode.

        Args:
            features, topologies, nodes, known: As of the members' ``forward``.
        """
        of_each = torch.stack([network(features, topologies, nodes, known) for network in self.networks], dim=1)
        return of_each if self.training else of_each.mean(1)

    @torch.no_grad()
    def score(
        self,
        features: Tensor,
        topologies: Sequence[EdgeTopology],
        nodes: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """:meth:`forward` in evaluation mode, (n,). Members that have ``score`` process a large graph in blocks."""
        scores = (getattr(network, "score", network) for network in self.networks)
        return torch.stack([score(features, topologies, nodes=nodes, known=known) for score in scores], dim=1).mean(1)
