"""Networks for nodes combined: several of a kind, or one with boosted trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from et.anomaly.model import AnomalyTransformer
from et.baselines.neighbour_trees import NeighbourTrees
from et.baselines.node_mlp import NodeMLP
from et.core import EdgeTopology
from et.core.arguments import check_sizes
from et.utils.errors import ArgumentsOf, UserError

OfTrees = Annotated[Mapping[str, Any] | None, ArgumentsOf("et.baselines.neighbour_trees.NeighbourTrees")]


class Ensemble(nn.Module):
    """Networks of one kind that differ in their initial weights and their dropout.

    Each has a loss of its own. The score is the mean of their log-odds (deep ensembles: Lakshminarayanan et al.,
    NeurIPS 2017). They share batches, masked labels and the epoch that is kept.

    Args:
        networks: Each maps (features, topologies, nodes, known) to log-odds (n,).
    """

    def __init__(self, networks: Sequence[nn.Module]):
        super().__init__()
        check_sizes(members=len(networks))
        self.networks = nn.ModuleList(networks)
        self.takes_known_labels: bool = networks[0].takes_known_labels

    @classmethod
    def of_et(
        cls, members: int = 5, **arguments: Annotated[Any, ArgumentsOf("et.anomaly.model.AnomalyTransformer")]
    ) -> Ensemble:
        """``members`` ETs. ``arguments`` are those of :class:`AnomalyTransformer`."""
        return cls([AnomalyTransformer(**arguments) for _ in range(members)])

    @classmethod
    def of_mlp(
        cls, members: int = 5, **arguments: Annotated[Any, ArgumentsOf("et.baselines.node_mlp.NodeMLP")]
    ) -> Ensemble:
        """``members`` MLPs. ``arguments`` are those of :class:`NodeMLP`."""
        return cls([NodeMLP(**arguments) for _ in range(members)])

    @property
    def position(self) -> Tensor | None:
        """The first network's position embedding, (N, D); None if it has none."""
        return getattr(self.networks[0], "position", None)

    def forward(
        self,
        features: Tensor,
        topologies: Sequence[EdgeTopology],
        nodes: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Mean log-odds (n,); in training mode those of each of the M networks, (n, M).

        Args:
            features, topologies, nodes, known: As of the networks' ``forward``.
        """
        log_odds = torch.stack([network(features, topologies, nodes, known) for network in self.networks], dim=1)
        return log_odds if self.training else log_odds.mean(1)

    @torch.no_grad()
    def score(
        self,
        features: Tensor,
        topologies: Sequence[EdgeTopology],
        nodes: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """The mean without gradients, (n,). Networks that have ``score`` process a large graph in blocks."""
        return torch.stack([score_of(each, features, topologies, nodes, known) for each in self.networks]).mean(0)


class Blend(nn.Module):
    """A network that is trained by gradient steps and trees that are fitted in one go, on the same input.

    The score is the mean of their log-odds. The epoch is the one whose mean scores best on the validation nodes.

    Args:
        network: Maps (features, topologies, nodes, known) to log-odds (n,).
        trees: Settings of :class:`NeighbourTrees`. If None, its defaults. The trees read known labels if ``network``
            does.

    Raises:
        UserError: ``trees`` are no settings, or set ``known_labels`` or ``label_hops``.
    """

    def __init__(self, network: nn.Module, trees: Mapping[str, Any] | None = None):
        super().__init__()
        if not (trees is None or isinstance(trees, Mapping)):
            raise UserError(f"model.trees has settings, such as model.trees.rounds=100; it must not be {trees!r}")
        for key in ("known_labels", "label_hops"):
            if trees is not None and key in trees:
                raise UserError(f"model.trees.{key}: the trees read what the network reads; set model.{key}")
        self.takes_known_labels = network.takes_known_labels
        self.network = network
        of_labels = {"known_labels": network.takes_known_labels, "label_hops": network.label_hops}
        self.trees = NeighbourTrees(**(trees or {}), **of_labels)
        self._latest: tuple[Any, ...] | None = None  # what the trees read last, and their log-odds

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
        """Log-odds (n,). In training mode those of the network alone, so that it does not learn to correct the trees.

        Args:
            features, topologies, nodes, known: As of the network's ``forward``.
        """
        log_odds = self.network(features, topologies, nodes, known)
        return log_odds if self.training else (log_odds + self._of_trees(features, topologies, known)) / 2

    @torch.no_grad()
    def score(
        self,
        features: Tensor,
        topologies: Sequence[EdgeTopology],
        nodes: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """The mean without gradients, (n,). A network that has ``score`` processes a large graph in blocks."""
        of_network = score_of(self.network, features, topologies, nodes, known)
        return (of_network + self._of_trees(features, topologies, known)) / 2

    def _of_trees(self, features: Tensor, topologies: Sequence[EdgeTopology], known: Tensor | None) -> Tensor:
        """Log-odds of the trees, (n,): kept, since validation asks for the same ones after every epoch."""
        if self._latest is not None:
            *inputs, log_odds = self._latest
            if inputs[0] is features and inputs[1] is topologies and _equal(inputs[2], known):
                return log_odds
        log_odds = self.trees(features, topologies, known=known)
        self._latest = features, topologies, known, log_odds
        return log_odds


def score_of(
    network: nn.Module,
    features: Tensor,
    topologies: Sequence[EdgeTopology],
    nodes: Tensor | None,
    known: Tensor | None,
) -> Tensor:
    """Log-odds (n,) by the ``score`` of a network, or by its ``forward`` if it has none."""
    return getattr(network, "score", network)(features, topologies, nodes=nodes, known=known)


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))
