"""Training labels as input: a node's label is a masked patch, and its neighbours' labels are visible ones.

A network that takes known labels is called with ``known`` (n,) int64: 0 benign, 1 anomalous, :data:`MASKED` hidden.
Only labels of training nodes are ever visible. In training a random share of them is masked and predicted; when other
nodes are scored, all are visible; a training node is scored with its own label masked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from et.core import EdgeTopology
from et.core.sparse import edge_aggregate

MASKED = 2
FOLDS = 5  # parts of the training nodes, each scored with the labels of the others
SMOOTHING = 0.25  # weight of the prior in a rate; if all nodes have as many neighbours, labels weigh 1 on average


def visible_labels(labels: Tensor, nodes: Tensor) -> Tensor:
    """The labels of ``nodes`` (m,) and :data:`MASKED` elsewhere: (n,) -> (n,)."""
    known = torch.full_like(labels, MASKED)
    known[nodes] = labels[nodes]
    return known


def draw_masked(train: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Divide the training nodes (m,) at random: (share m of them to be masked, the others), at least one each."""
    count = min(max(1, round(share * len(train))), max(1, len(train) - 1))
    order = torch.randperm(len(train), device=train.device)
    return train[order[:count]], train[order[count:]]


def folds(train: Tensor, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Divide the training nodes (m,) by their ``ids`` (m,) into :data:`FOLDS` parts: (part, all others) of each."""
    for fold in range(FOLDS):
        inside = ids % FOLDS == fold
        yield train[inside], train[~inside]


def label_counts(known: Tensor, topologies: Sequence[EdgeTopology]) -> Tensor:
    """log(1 + count) of each node's benign and of its anomalous neighbours with a visible label.

    A self-loop is not counted: a node's own label has no part in its own counts.

    Args:
        known: (n,) labels, or :data:`MASKED`.
        topologies: One, or one a relation.

    Returns:
        (n, 2 R) float32.
    """
    kinds = _kinds(known)
    return torch.cat([_sum_of_neighbours(kinds, topology) for topology in topologies], dim=1).log1p()


def label_rates(known: Tensor, topologies: Sequence[EdgeTopology], merged: bool = False) -> Tensor:
    """What the visible labels two steps away from each node say, for graphs in which neighbours differ in kind.

    With d the number of neighbours, the label of node k weighs N / (M d_j sqrt(d_i d_k)) for each path i, j, k: the
    weights of two GCN layers, times the number of nodes N per visible label M. The rate of node i is s_1 / (s_0 + s_1),
    with s_c the sum of these weights over the labels c, smoothed by the share of anomalies among all visible labels.
    A visible label has a part in the rate of its own node: score a node with its label masked.

    Args:
        known: (n,) labels, or :data:`MASKED`.
        topologies: One, or one a relation.
        merged: If True, add up the weights of all relations.

    Returns:
        For each relation the log-odds of the rate minus those of the share, and s_0 + s_1: (n, 2 R), or (n, 2) if
        ``merged``; float32.
    """
    kinds = _kinds(known).double()  # rounded at the end, the sums do not depend on the order of the nodes
    count = kinds.sum(0)  # (2,)
    share = (count[1] + 0.5) / (count.sum() + 1)
    sums = torch.stack([_two_steps(kinds, topology) for topology in topologies])  # (R, n, 2)
    sums = (sums.sum(0, keepdim=True) if merged else sums) * (len(known) / count.sum().clamp(min=1))
    benign, anomalous = sums.unbind(-1)  # (R, n) each
    odds = (anomalous + SMOOTHING * share) / (benign + SMOOTHING * (1 - share))
    columns = torch.stack([odds.log() - torch.logit(share), benign + anomalous], dim=-1)  # (R, n, 2)
    return columns.transpose(0, 1).flatten(1).float()


def with_label_counts(
    features: Tensor, topologies: Sequence[EdgeTopology], known: Tensor | None, counted: bool, hops: int = 1
) -> Tensor:
    """Features with what the neighbours' labels say in all relations together, for networks built without their number.

    Args:
        features: (n, F).
        topologies: One, or one a relation.
        known: (n,) visible labels. If None, none is visible.
        counted: False leaves the features as they are.
        hops: 1 for :func:`label_counts`, 2 for :func:`label_rates` as well.

    Returns:
        (n, F + 2 hops), or (n, F).
    """
    if not counted:
        return features
    if known is None:
        known = torch.full((len(features),), MASKED, device=features.device)
    counts = label_counts(known, topologies).expm1().unflatten(1, (len(topologies), 2)).sum(1).log1p()
    columns = [counts, label_rates(known, topologies, merged=True)][:hops]
    return torch.cat([features, *(column.to(features) for column in columns)], dim=1)


def label_features(known: Tensor, topologies: Sequence[EdgeTopology], hops: int = 1) -> Tensor:
    """:func:`label_counts`, and with ``hops=2`` :func:`label_rates` behind them: (n, 2 R hops)."""
    counts = label_counts(known, topologies)
    return counts if hops == 1 else torch.cat([counts, label_rates(known, topologies)], dim=1)


def check_label_hops(hops: int, known_labels: bool) -> int:
    """Return ``hops``.

    Raises:
        ValueError: It is not 1 or 2, or it is 2 without known labels.
    """
    if isinstance(hops, bool) or not isinstance(hops, int) or hops not in (1, 2):
        raise ValueError(f"label_hops must be 1 or 2, not {hops!r}")
    if hops == 2 and not known_labels:
        raise ValueError("label_hops=2 reads known labels: set known_labels=true, for ET label_counts=true")
    return hops


def _kinds(known: Tensor) -> Tensor:
    """Whether each node has a visible label 0, and 1: (n, 2) float32."""
    return torch.stack([known == 0, known == 1], dim=1).float()


def _sum_of_neighbours(values: Tensor, topology: EdgeTopology) -> Tensor:
    """Sum over the neighbours of each node, itself not among them: (n, k) -> (n, k)."""
    between = (topology.edges.key != topology.edges.query).float()[:, None]  # (E, 1)
    return edge_aggregate(between, values[:, None], topology.edges)[:, 0]


def _two_steps(kinds: Tensor, topology: EdgeTopology) -> Tensor:
    """Sums of 1 / (d_j sqrt(d_i d_k)) over paths i, j, k, by the label of k: (n, 2) -> (n, 2)."""
    degree = _sum_of_neighbours(torch.ones_like(kinds[:, :1]), topology).clamp(min=1)  # (n, 1)
    root = degree.sqrt()
    return _sum_of_neighbours(_sum_of_neighbours(kinds / root, topology) / degree, topology) / root
