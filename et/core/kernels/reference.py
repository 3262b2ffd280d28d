"""Attention along edges by plain gather and scatter: the reference of all other backends.

It runs on any device in any precision and is differentiable any number of times. It creates tensors of E x H x Y
elements, which the other backends avoid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from et.core.csr import SortedEdges


def edge_scores(q: Tensor, k: Tensor, edges: SortedEdges) -> Tensor:
    """Inner products K_B . Q_C on the edges: q, k (N, H, Y) -> (E, H)."""
    return (q[edges.query] * k[edges.key]).sum(-1)


def segment_logsumexp(scores: Tensor, edges: SortedEdges) -> Tensor:
    """Logsumexp of the scores of each query's edges: (E, H) -> (N, H); 0 for a query without keys."""
    index = edges.query.long()[:, None].expand_as(scores)
    empty = scores.new_full((edges.num_nodes, scores.shape[1]), -torch.inf)
    # The maximum only shifts the exponent, so no gradient needs to pass through it.
    peak = empty.scatter_reduce(0, index, scores.detach(), "amax")
    peak = torch.where(peak.isinf(), torch.zeros_like(peak), peak)
    total = torch.zeros_like(peak).index_add(0, edges.query, (scores - peak[edges.query]).exp())
    return torch.where(total > 0, total, torch.ones_like(total)).log() + peak


def edge_aggregate(weight: Tensor, x: Tensor, edges: SortedEdges, to_keys: bool = False) -> Tensor:
    """Sum of weight (E, H) times x (N, H, Y) over the edges of each query, or (``to_keys``) key: (N, H, Y)."""
    source, target = (edges.query, edges.key) if to_keys else (edges.key, edges.query)
    return torch.zeros_like(x).index_add(0, target, weight[..., None] * x[source])


def log_partition(q: Tensor, k: Tensor, beta: Tensor, edges: SortedEdges) -> Tensor:
    """log sum_B exp(beta K_B . Q_C) for each query: q, k (N, H, Y), beta (H,) -> (N, H); 0 for a query without keys."""
    return segment_logsumexp(edge_scores(q, k, edges) * beta, edges)


def attention(
    q: Tensor, k: Tensor, beta: Tensor, edges: SortedEdges, clamp: float | None = None
) -> tuple[Tensor, Tensor]:
    """Both terms of the update, (sum_B P_CB K_B, sum_C P_CB Q_C), each (N, H, Y); P is the softmax over a query's keys.

    ``clamp`` limits the scores to -clamp .. clamp before the softmax. If None, there is no limit.
    """
    scores = edge_scores(q, k, edges) * beta
    if clamp is not None:
        scores = scores.clamp(-clamp, clamp)
    p = (scores - segment_logsumexp(scores, edges)[edges.query]).exp()
    return edge_aggregate(p, k, edges), edge_aggregate(p, q, edges, to_keys=True)
