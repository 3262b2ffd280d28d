"""Gradient-boosted trees on the features of a node and the means over its neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from et.core import EdgeTopology
from et.core.arguments import check_sizes


class NeighbourTrees(nn.Module):
    """scikit-learn's HistGradientBoosting on [x | mean over neighbours | mean over the neighbours' means].

    There are no parameters to train by gradient: :meth:`fit` grows all trees at once. The trees do not depend on the
    order of the nodes: splits of equal gain are common, and rounding that depends on the order would choose among them.

    Args:
        hops: Number of neighbourhood hops; 0 uses the node's own features only.
        rounds: Number of boosting rounds.
        learning_rate, max_leaf_nodes, min_samples_leaf, l2: Settings of each round.
        balanced: If True, weight both classes equally.
        seed: Seed of scikit-learn, which draws random numbers on large data only, to sample the bins.
    """

    def __init__(
        self,
        hops: int = 2,
        rounds: int = 100,
        learning_rate: float = 0.1,
        max_leaf_nodes: int = 31,
        min_samples_leaf: int = 20,
        l2: float = 0.0,
        balanced: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        check_sizes(rounds=rounds, min_samples_leaf=min_samples_leaf)
        check_sizes(minimum=2, max_leaf_nodes=max_leaf_nodes)
        check_sizes(minimum=0, hops=hops)
        self.hops, self.trees = hops, None
        self.settings = {
            "max_iter": rounds,
            "learning_rate": learning_rate,
            "max_leaf_nodes": max_leaf_nodes,
            "min_samples_leaf": min_samples_leaf,
            "l2_regularization": l2,
            "class_weight": "balanced" if balanced else None,
            "random_state": seed,
            "early_stopping": False,
        }

    @property
    def fitted(self) -> bool:
        return self.trees is not None

    def inputs(self, features: Tensor, topologies: Sequence[EdgeTopology]) -> Tensor:
        """Inputs of the trees: features, then for each relation the means over 1, 2 ... hops: (n, F (1 + hops R))."""
        columns = [features]
        for topology in topologies:
            mean = features
            for _ in range(self.hops):
                mean = neighbour_mean(mean, topology)
                columns.append(mean)
        return torch.cat(columns, dim=1)

    def fit(self, features: Tensor, topologies: Sequence[EdgeTopology], labels: Tensor, train: Tensor) -> None:
        """Grow the trees on the nodes ``train`` (m,); ``labels`` (n,) of other nodes are ignored."""
        from sklearn.ensemble import HistGradientBoostingClassifier

        inputs, known = self.inputs(features, topologies)[train].cpu().numpy(), labels[train].cpu().numpy()
        order = np.lexsort((known, *inputs.T))
        self.trees = HistGradientBoostingClassifier(**self.settings).fit(inputs[order], known[order])

    def forward(self, features: Tensor, topologies: Sequence[EdgeTopology], nodes: Tensor | None = None) -> Tensor:
        """Log-odds (n,); requires :meth:`fit`."""
        raw = self.trees.decision_function(self.inputs(features, topologies).cpu().numpy())
        return torch.from_numpy(raw).to(features)


def neighbour_mean(x: Tensor, topology: EdgeTopology) -> Tensor:
    """Mean over each node's neighbours, (n, F) -> (n, F); 0 for a node without neighbours.

    The sum is in float64, where adding float32 features is practically exact. The mean therefore does not depend on the
    order of the neighbours, and nodes with the same neighbours have the same mean.
    """
    edges = topology.edges
    ones = np.ones(edges.num_edges)
    rows = csr_matrix((ones, edges.key.cpu().numpy(), edges.row_start.cpu().numpy()), (edges.num_nodes,) * 2)
    sums = torch.from_numpy(rows @ x.double().cpu().numpy()).to(x.device)
    return (sums / edges.degree.clamp(min=1)[:, None]).to(x.dtype)
