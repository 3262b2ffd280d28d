"""Attention along edges in three primitives: scores on the edges, log-sum-exp over a query's keys, weighted sums.

Edges are kept sorted by their query, so that a query's keys lie side by side (CSR).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SortedEdges:
    """Edges sorted by query.

    Attributes:
        query: (E,) int64, ascending: node C whose query the edge serves (PyG's target).
        key: (E,) int64: node B whose key the edge offers (PyG's source).
        order: (E,) int64: position of each sorted edge in the edge_index it was made from.
        num_nodes: N.
    """

    query: Tensor
    key: Tensor
    order: Tensor
    num_nodes: int

    @property
    def num_edges(self) -> int:
        return self.query.numel()

    @classmethod
    def from_edge_index(cls, edge_index: Tensor, num_nodes: int) -> SortedEdges:
        """Sort ``edge_index`` (2, E), row 0 key and row 1 query, by query; repeated edges stay."""
        if edge_index.dim() != 2 or edge_index.shape[0] != 2:
            raise ValueError(f"edge_index must be (2, E), row 0 keys and row 1 queries; got {tuple(edge_index.shape)}")
        if edge_index.is_floating_point() or edge_index.dtype == torch.bool:
            raise ValueError(f"edge_index must hold integers; got {edge_index.dtype}")
        if edge_index.numel() and (int(edge_index.min()) < 0 or int(edge_index.max()) >= num_nodes):
            low, high = int(edge_index.min()), int(edge_index.max())
            raise ValueError(f"edge_index names nodes {low} .. {high}, but the graph has nodes 0 .. {num_nodes - 1}")
        key, query = edge_index.long()
        query, order = torch.sort(query, stable=True)
        return cls(query, key[order], order, num_nodes)

    def to(self, device: torch.device | str) -> SortedEdges:
        return SortedEdges(self.query.to(device), self.key.to(device), self.order.to(device), self.num_nodes)


def edge_scores(q: Tensor, k: Tensor, edges: SortedEdges) -> Tensor:
    """Inner products K_B . Q_C on the edges: q, k (N, H, Y) -> (E, H)."""
    return (q[edges.query] * k[edges.key]).sum(-1)


def segment_logsumexp(scores: Tensor, edges: SortedEdges) -> Tensor:
    """log of the sum over each query's edges of exp(scores): (E, H) -> (N, H); 0 for a query without keys."""
    index = edges.query[:, None].expand_as(scores)
    empty = scores.new_full((edges.num_nodes, scores.shape[1]), -torch.inf)
    # The maximum only shifts the exponent, so no gradient needs to pass through it.
    peak = empty.scatter_reduce(0, index, scores.detach(), "amax")
    peak = torch.where(peak.isinf(), torch.zeros_like(peak), peak)
    total = torch.zeros_like(peak).index_add(0, edges.query, (scores - peak[edges.query]).exp())
    return torch.where(total > 0, total, torch.ones_like(total)).log() + peak


def edge_aggregate(weight: Tensor, x: Tensor, edges: SortedEdges, to_keys: bool = False) -> Tensor:
    """Sums over edges of weight (E, H) times x (N, H, Y), (N, H, Y).

    By default what a query collects from its keys, sum_B weight_CB x_B; with ``to_keys`` what a key collects from the
    queries that attend to it, sum_C weight_CB x_C.
    """
    source, target = (edges.query, edges.key) if to_keys else (edges.key, edges.query)
    return torch.zeros_like(x).index_add(0, target, weight[..., None] * x[source])
