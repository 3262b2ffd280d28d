"""CPU kernels of the primitives, compiled by numba on first use and cached on disk.

Whole attention is in :mod:`et.core.kernels.numba.attention`, orders of edges in :mod:`et.core.kernels.numba.orders`.
Kernels that call each other share a file, because numba recompiles a kernel only if its own file changes.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from et.core.csr import SortedEdges
from et.core.kernels.numba.attention import attention_gradient, key_term, query_term
from et.core.kernels.numba.runtime import arrays, kernel, run

__all__ = ["attention_gradient", "edge_aggregate", "edge_scores", "key_term", "query_term", "segment_logsumexp"]

PART = 64  # edges that are summed before they are added to their row: keeps hubs of 10^5 edges exact in float32


@kernel
def _scores(q, k, row_start, key, out, low, high):
    for c in range(low, high):
        for e in range(row_start[c], row_start[c + 1]):
            b = key[e]
            for h in range(q.shape[1]):
                total = q.dtype.type(0)
                for y in range(q.shape[2]):
                    total += q[c, h, y] * k[b, h, y]
                out[e, h] = total


@kernel
def _aggregate(weight, x, start, source, position, out, low, high):
    _, heads, width = x.shape
    part = np.zeros((heads, width), x.dtype)
    for target in range(low, high):
        for block in range(start[target], start[target + 1], PART):
            for e in range(block, min(block + PART, start[target + 1])):
                node = source[e]
                at = position[e] if len(position) else e
                for h in range(heads):
                    w = weight[at, h]
                    for y in range(width):
                        part[h, y] += w * x[node, h, y]
            for h in range(heads):
                for y in range(width):
                    out[target, h, y] += part[h, y]
                    part[h, y] = 0


@kernel
def _logsumexp(scores, row_start, out, low, high):
    for c in range(low, high):
        if row_start[c] == row_start[c + 1]:
            continue
        for h in range(scores.shape[1]):
            peak = scores.dtype.type(-np.inf)
            for e in range(row_start[c], row_start[c + 1]):
                peak = max(peak, scores[e, h])
            if np.isinf(peak) and peak < 0:
                continue
            total = 0.0
            for e in range(row_start[c], row_start[c + 1]):
                total += np.exp(scores[e, h] - peak)
            out[c, h] = peak + np.log(total)


def edge_scores(q: Tensor, k: Tensor, edges: SortedEdges) -> Tensor:
    """See :func:`et.core.kernels.reference.edge_scores`."""
    out = q.new_empty(edges.num_edges, q.shape[1])
    index = arrays(edges.row_start, edges.key)
    run(_scores, index[0], (*arrays(q, k), *index, out.numpy()))
    return out


def edge_aggregate(weight: Tensor, x: Tensor, edges: SortedEdges, to_keys: bool = False) -> Tensor:
    """See :func:`et.core.kernels.reference.edge_aggregate`."""
    out = x.new_zeros(x.shape)
    index = (*edges.by_key, edges.key_position) if to_keys else (edges.row_start, edges.key, edges.key[:0])
    index = arrays(*index)
    run(_aggregate, index[0], (*arrays(weight, x), *index, out.numpy()))
    return out


def segment_logsumexp(scores: Tensor, edges: SortedEdges) -> Tensor:
    """See :func:`et.core.kernels.reference.segment_logsumexp`."""
    out = scores.new_zeros(edges.num_nodes, scores.shape[1])
    index = arrays(edges.row_start)
    run(_logsumexp, index[0], (*arrays(scores), *index, out.numpy()))
    return out
