"""Aggregates over the neighbours of a node, as input of models that do not aggregate themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from et.core import EdgeTopology
from et.utils.errors import UserError


def neighbour_features(
    features: Tensor,
    topologies: Sequence[EdgeTopology],
    hops: int | Sequence[int],
    aggregate: str = "mean",
    degrees: bool = False,
) -> Tensor:
    """Features, then for each relation their aggregates over 1, 2 ... ``hops`` hops: (n, F) -> (n, F (1 + hops R)).

    Args:
        features: Node features, (n, F).
        topologies: One topology, or one per relation.
        hops: Number of aggregations, one for all relations or one for each; each aggregates the result of the one
            before.
        aggregate: ``mean``, ``sum`` or ``max``.
        degrees: If True, R columns follow: log(1 + number of neighbours) in each relation.
    """
    columns = [features]
    for topology, times in zip(topologies, hops_of(hops, len(topologies)), strict=True):
        collected = features
        for _ in range(times):
            collected = AGGREGATES[aggregate](collected, topology)
            columns.append(collected)
    if degrees:
        columns += [topology.edges.degree.to(features)[:, None].log1p() for topology in topologies]
    return torch.cat(columns, dim=1)


def hops_of(hops: int | Sequence[int], num_relations: int) -> list[int]:
    """Number of hops in each relation.

    Raises:
        UserError: ``hops`` has numbers for more or fewer relations.
    """
    if isinstance(hops, int):
        return [hops] * num_relations
    if len(hops) != num_relations:
        raise UserError(
            f"data.neighbour_hops={list(hops)} has {len(hops)} numbers for {num_relations} relation(s): give one for "
            "each, or one number for all"
        )
    return list(hops)


def neighbour_mean(x: Tensor, topology: EdgeTopology) -> Tensor:
    """Mean over each node's neighbours, (n, F) -> (n, F); 0 for a node without neighbours.

    The sum is in float64, where adding float32 features is practically exact. The mean therefore does not depend on the
    order of the neighbours, and nodes with the same neighbours have the same mean.
    """
    return (exact_sum(x, topology) / topology.edges.degree.clamp(min=1)[:, None]).to(x.dtype)


def neighbour_sum(x: Tensor, topology: EdgeTopology) -> Tensor:
    """Sum over each node's neighbours, (n, F) -> (n, F); 0 for a node without neighbours. Exact as the mean is."""
    return exact_sum(x, topology).to(x.dtype)


def exact_sum(x: Tensor, topology: EdgeTopology) -> Tensor:
    """Sum over each node's neighbours in float64, (n, F) -> (n, F)."""
    edges = topology.edges
    ones = np.ones(edges.num_edges)
    rows = csr_matrix((ones, edges.key.cpu().numpy(), edges.row_start.cpu().numpy()), (edges.num_nodes,) * 2)
    return torch.from_numpy(rows @ x.double().cpu().numpy()).to(x.device)


def neighbour_max(x: Tensor, topology: EdgeTopology) -> Tensor:
    """Maximum over each node's neighbours, (n, F) -> (n, F), a column at a time; 0 for a node without any."""
    edges, query = topology.edges, topology.edges.query.long()
    found = torch.zeros_like(x)
    for column in range(x.shape[1]):
        found[:, column].scatter_reduce_(0, query, x[edges.key.long(), column], "amax", include_self=False)
    return found


AGGREGATES = {"mean": neighbour_mean, "sum": neighbour_sum, "max": neighbour_max}
