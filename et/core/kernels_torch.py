"""Attention along edges in plain torch on any device, a chunk of edges at a time so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from et.core import kernels_reference
from et.core.edges import SortedEdges

CHUNK_ELEMENTS = 1 << 24  # numbers in the largest tensor of a chunk (edges x H x Y)


def chunks(edges: SortedEdges, q: Tensor) -> Iterator[slice]:
    """Slices of the edges whose gathered rows hold at most CHUNK_ELEMENTS numbers (never less than one edge)."""
    size = max(1, CHUNK_ELEMENTS // max(1, q[0].numel() if len(q) else 1))
    for start in range(0, edges.num_edges, size):
        yield slice(start, min(start + size, edges.num_edges))


def edge_scores(q: Tensor, k: Tensor, edges: SortedEdges) -> Tensor:
    """See :func:`et.core.kernels_reference.edge_scores`."""
    out = q.new_empty(edges.num_edges, q.shape[1])
    for part in chunks(edges, q):
        torch.sum(q[edges.query[part]] * k[edges.key[part]], dim=-1, out=out[part])
    return out


def edge_aggregate(weight: Tensor, x: Tensor, edges: SortedEdges, to_keys: bool = False) -> Tensor:
    """See :func:`et.core.kernels_reference.edge_aggregate`."""
    source, target = (edges.query, edges.key) if to_keys else (edges.key, edges.query)
    out = torch.zeros_like(x)
    for part in chunks(edges, x):
        out.index_add_(0, target[part], weight[part, :, None] * x[source[part]])
    return out


segment_logsumexp = kernels_reference.segment_logsumexp
