"""Training labels as input: a node's label is a masked patch, and its neighbours' labels are visible ones.

A network that takes known labels is called with ``known`` (n,) int64: 0 benign, 1 anomalous, :data:`MASKED` hidden.
Only labels of training nodes are ever open. In training a random share of them is masked and predicted; when other
nodes are scored, all are open; a training node is scored with its own label masked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from et.core import EdgeTopology
from et.core.sparse import edge_aggregate

MASKED = 2
FOLDS = 5  # passes over which the training nodes are scored


def open_labels(labels: Tensor, nodes: Tensor) -> Tensor:
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
    """log(1 + count) of each node's benign and of its anomalous neighbours with an open label.

    A self-loop is not counted: a node's own label has no part in its own counts.

    Args:
        known: (n,) labels, or :data:`MASKED`.
        topologies: One, or one a relation.

    Returns:
        (n, 2 R) float32.
    """
    kinds = torch.stack([known == 0, known == 1], dim=1).float()[:, None]  # (n, 1, 2)
    columns = []
    for topology in topologies:
        between = (topology.edges.key != topology.edges.query).float()[:, None]  # (E, 1)
        columns.append(edge_aggregate(between, kinds, topology.edges)[:, 0])
    return torch.cat(columns, dim=1).log1p()


def with_label_counts(
    features: Tensor, topologies: Sequence[EdgeTopology], known: Tensor | None, counted: bool
) -> Tensor:
    """Features with the log counts of all relations together behind them, for networks built without their number.

    Args:
        features: (n, F).
        topologies: One, or one a relation.
        known: (n,) open labels. If None, none is open.
        counted: False leaves the features as they are.

    Returns:
        (n, F + 2), or (n, F).
    """
    if not counted:
        return features
    if known is None:
        known = torch.full((len(features),), MASKED, device=features.device)
    counts = label_counts(known, topologies).expm1().unflatten(1, (len(topologies), 2)).sum(1).log1p()
    return torch.cat([features, counts.to(features)], dim=1)
