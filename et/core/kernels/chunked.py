"""Attention along edges in plain torch on any device, in chunks of edges with bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from et.core.csr import SortedEdges
from et.core.kernels import reference as kernels_reference

# Numbers in the largest tensor of a chunk (edges x H x Y): small enough for a CPU's cache, large enough to fill a GPU.
CHUNK_ELEMENTS = {"cpu": 1 << 18, "other": 1 << 24}


def chunks(num_edges: int, rows: Tensor) -> Iterator[slice]:
    """Slices of the edges for which one gathered row (H, Y) per edge has at most CHUNK_ELEMENTS elements in total."""
    elements = CHUNK_ELEMENTS.get(rows.device.type, CHUNK_ELEMENTS["other"])
    size = max(1, elements // max(1, math.prod(rows.shape[1:])))
    for start in range(0, num_edges, size):
        yield slice(start, min(start + size, num_edges))


def edge_scores(q: Tensor, k: Tensor, edges: SortedEdges) -> Tensor:
    """See :func:`et.core.kernels.reference.edge_scores`."""
    out = q.new_empty(edges.num_edges, q.shape[1])
    for part in chunks(edges.num_edges, q):
        torch.sum(q[edges.query[part]] * k[edges.key[part]], dim=-1, out=out[part])
    return out


def edge_aggregate(weight: Tensor, x: Tensor, edges: SortedEdges, to_keys: bool = False) -> Tensor:
    """See :func:`et.core.kernels.reference.edge_aggregate`."""
    source, target = (edges.query, edges.key) if to_keys else (edges.key, edges.query)
    out = torch.zeros_like(x)
    for part in chunks(edges.num_edges, x):
        out.index_add_(0, target[part], weight[part, :, None] * x[source[part]])
    return out


segment_logsumexp = kernels_reference.segment_logsumexp


def _scores(q: Tensor, k: Tensor, beta: Tensor, query: Tensor, key: Tensor, clamp: float) -> Tensor:
    """beta K_B . Q_C of the pairs (query, key), limited to -clamp .. clamp: (e, H)."""
    return ((q[query] * k[key]).sum(-1) * beta).clamp(-clamp, clamp)


def query_term(
    q: Tensor, k: Tensor, beta: Tensor, edges: SortedEdges, only_partition: bool = False, clamp: float = math.inf
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`et.core.kernels.numba.sparse.query_term`. Two passes: the partition of every query, then the sums."""
    parts = list(chunks(edges.num_edges, q))
    peak = q.new_full(q.shape[:2], -torch.inf)
    for part in parts:
        query = edges.query[part]
        scores = _scores(q, k, beta, query, edges.key[part], clamp)
        peak.scatter_reduce_(0, query.long()[:, None].expand_as(scores), scores, "amax")
    peak = torch.where(edges.degree[:, None] > 0, peak, 0.0)
    total, u = torch.zeros_like(peak), torch.zeros_like(q)
    for part in parts:
        query, key = edges.query[part], edges.key[part]
        p = (_scores(q, k, beta, query, key, clamp) - peak[query]).exp()
        total.index_add_(0, query, p)
        if not only_partition:
            u.index_add_(0, query, p[..., None] * k[key])
    total = torch.where(total > 0, total, 1.0)
    return u[:0] if only_partition else u / total[..., None], peak, total


def key_term(
    q: Tensor, values: Tensor, k: Tensor, beta: Tensor, peak: Tensor, total: Tensor, edges: SortedEdges,
    clamp: float = math.inf,
) -> Tensor:  # fmt: skip
    """See :func:`et.core.kernels.numba.sparse.key_term`."""
    v = torch.zeros_like(k)
    for part in chunks(edges.num_edges, k):
        query, key = edges.query[part], edges.key[part]
        p = (_scores(q, k, beta, query, key, clamp) - peak[query]).exp() / total[query]
        v.index_add_(0, key, p[..., None] * values[query])
    return v


def attention_gradient(
    q: Tensor, k: Tensor, beta: Tensor, peak: Tensor, total: Tensor, grad_u: Tensor, grad_v: Tensor, edges: SortedEdges
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`et.core.kernels.numba.sparse.attention_gradient`."""
    mean, grad_beta = torch.zeros_like(peak), torch.zeros_like(beta)
    grad_q, grad_k = torch.zeros_like(q), torch.zeros_like(k)

    def slopes(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, P and the loss's derivatives with respect to P, on the edges of one chunk."""
        scores = (q[query] * k[key]).sum(-1)
        p = (scores * beta - peak[query]).exp() / total[query]
        return scores, p, (grad_u[query] * k[key]).sum(-1) + (grad_v[key] * q[query]).sum(-1)

    for part in chunks(edges.num_edges, q):
        query = edges.query[part]
        _, p, slope = slopes(query, edges.key[part])
        mean.index_add_(0, query, p * slope)
    for part in chunks(edges.num_edges, q):
        query, key = edges.query[part], edges.key[part]
        scores, p, slope = slopes(query, key)
        change = p * (slope - mean[query])
        grad_beta += (change * scores).sum(0)
        p, change = p[..., None], (change * beta)[..., None]
        grad_q.index_add_(0, query, p * grad_v[key]).index_add_(0, query, change * k[key])
        grad_k.index_add_(0, key, p * grad_u[query]).index_add_(0, key, change * q[query])
    return grad_q, grad_k, grad_beta
