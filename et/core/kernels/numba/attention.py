"""CPU kernels of attention along edges, forward and backward, without a tensor of the size of the edges.

The softmax P is never stored: each pass recomputes it from q, k and two numbers per query, the largest score ``peak``
and ``total`` = sum exp(score - peak). Their logsumexp alone would not suffice: for large scores it is rounded, and so
is P.

All kernels loop over their rows in the same way: one head at a time; within it, one tile of gathered nodes at a time
(see :func:`tile_size`), with ``cursor`` at the first remaining edge of each row; within a row and tile, PART edges at a
time.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from et.core.csr import SortedEdges
from et.core.kernels.numba.runtime import arrays, exact_kernel, kernel, run

PART = 64  # edges that are summed before they are added to their row
TILE_BYTES = 1 << 19  # of gathered rows that should stay in a core's cache


def tile_size(x: Tensor, edges: SortedEdges) -> int:
    """Number of nodes per tile, so that two of their rows x[node, head] stay in cache; all nodes for a sparse graph.

    A row's edges are sorted by the node they gather from. Looping over a task's rows once per tile, instead of over
    each whole row, takes half the time if the rows of all nodes exceed the cache and a tile holds several edges per
    row.
    """
    tile = max(1, TILE_BYTES // max(1, 2 * x.shape[2] * x.element_size()))
    return tile if edges.num_edges * tile >= 4 * edges.num_nodes * len(x) else max(1, len(x))


@kernel
def _dot(x, y):
    """Inner product in a loop, so that every kernel sums it in the same order and gets the same score."""
    total = x.dtype.type(0)
    for i in range(len(x)):
        total += x[i] * y[i]
    return total


@kernel
def _limited_dot(x, y, bound):
    """Inner product, at least -bound and at most bound."""
    return min(max(_dot(x, y), -bound), bound)


@kernel
def _dots(x, y, v, w):
    """x . y + v . w"""
    total = x.dtype.type(0)
    for i in range(len(x)):
        total += x[i] * y[i] + v[i] * w[i]
    return total


@kernel
def _flush(part, out):
    """Add a partial sum to its row. Summing few edges at a time keeps hubs of 10^5 edges exact in float32."""
    for i in range(len(part)):
        out[i] += part[i]
        part[i] = 0


@exact_kernel
def _unnormalised(score, beta, peak):
    """exp(beta score - peak) without fused products: a query's largest score must give exactly 1 in every kernel."""
    return np.exp(score * beta - peak)


@kernel
def _until(node, e, end, limit):
    """Index of the first of the edges e .. end whose node is at least ``limit``."""
    while e < end and node[e] < limit:
        e += 1
    return e


@kernel
def _softmax(scores, beta):
    """Replace inner products by P in place; returns the largest score and the sum of exp(score - largest)."""
    if len(scores) == 0:
        return scores.dtype.type(0), 1.0
    largest = scores.dtype.type(-np.inf)
    for j in range(len(scores)):
        largest = max(largest, scores[j] * beta)
    total = 0.0
    for j in range(len(scores)):
        scores[j] = _unnormalised(scores[j], beta, largest)
        total += scores[j]
    for j in range(len(scores)):
        scores[j] /= total
    return largest, total


@kernel
def _together(tile, nodes, low, high):
    """Number of rows that share a pass over the tiles: all of a task with tiles; one without, since all nodes stay in
    cache.
    """
    return max(1, high - low) if tile < nodes else 1


@kernel
def _query_term(q, k, beta, bound, row_start, key, u, peak, total, tile, low, high):
    nodes, (_, heads, width) = len(k), q.shape
    rows = _together(tile, nodes, low, high)
    cursor, part = np.empty(rows, np.int64), np.zeros(width, q.dtype)
    p = np.empty(row_start[high] - row_start[low], q.dtype)
    for group, h in np.ndindex(((high - low + rows - 1) // rows, heads)):
        top, hk = low + group * rows, h % k.shape[1]
        bottom, base = min(top + rows, high), row_start[top]
        cursor[: bottom - top] = row_start[top:bottom]
        for limit in range(tile, nodes + tile, tile):
            for c in range(top, bottom):
                begin, end = cursor[c - top], _until(key, cursor[c - top], row_start[c + 1], limit)
                cursor[c - top] = end
                for e in range(begin, end):
                    p[e - base] = _limited_dot(q[c, h], k[key[e], hk], bound[h])
        for c in range(top, bottom):
            row = p[row_start[c] - base : row_start[c + 1] - base]
            peak[c, h], total[c, h] = _softmax(row, beta[h])
        if len(u) == 0:
            continue
        cursor[: bottom - top] = row_start[top:bottom]
        for limit in range(tile, nodes + tile, tile):
            for c in range(top, bottom):
                begin, end = cursor[c - top], _until(key, cursor[c - top], row_start[c + 1], limit)
                cursor[c - top] = end
                for block in range(begin, end, PART):
                    for e in range(block, min(block + PART, end)):
                        b, w = key[e], p[e - base]
                        for y in range(width):
                            part[y] += w * k[b, hk, y]
                    _flush(part, u[c, h])


@kernel
def _key_term(q, values, k, beta, bound, peak, total, start, query, v, tile, low, high):
    nodes, (_, heads, width) = len(q), k.shape
    rows = _together(tile, nodes, low, high)
    cursor, p, part = np.empty(rows, np.int64), np.empty(PART, q.dtype), np.zeros(width, q.dtype)
    for group, h in np.ndindex(((high - low + rows - 1) // rows, heads)):
        top, hq = low + group * rows, h % q.shape[1]
        bottom = min(top + rows, high)
        cursor[: bottom - top] = start[top:bottom]
        for limit in range(tile, nodes + tile, tile):
            for b in range(top, bottom):
                begin, end = cursor[b - top], _until(query, cursor[b - top], start[b + 1], limit)
                cursor[b - top] = end
                for block in range(begin, end, PART):
                    queries = query[block : min(block + PART, end)]
                    for j in range(len(queries)):
                        c = queries[j]
                        score = _limited_dot(q[c, hq], k[b, h], bound[h])
                        p[j] = _unnormalised(score, beta[h], peak[c, h]) / total[c, h]
                    for j in range(len(queries)):
                        c, w = queries[j], p[j]
                        for y in range(width):
                            part[y] += w * values[c, hq, y]
                    _flush(part, v[b, h])


@kernel
def _slopes_to_changes(p, slopes, scores, beta):
    """Turn the loss's derivatives by P into those by the inner products, in place; mean slope, derivative by beta."""
    mean = 0.0
    for j in range(len(p)):
        mean += p[j] * slopes[j]
    mean, by_beta = p.dtype.type(mean), 0.0
    for j in range(len(p)):
        change = p[j] * (slopes[j] - mean)
        by_beta += change * scores[j]
        slopes[j] = beta * change
    return mean, by_beta


@kernel
def _query_gradient(q, k, beta, peak, total, gu, gv, row_start, key, gq, mean, gbeta, tile, low, high):
    nodes, heads, width = q.shape
    rows = _together(tile, nodes, low, high)
    cursor, part = np.empty(rows, np.int64), np.zeros(width, q.dtype)
    scores, p, slopes = np.empty((3, row_start[high] - row_start[low]), q.dtype)
    for group, h in np.ndindex(((high - low + rows - 1) // rows, heads)):
        top = low + group * rows
        bottom, base = min(top + rows, high), row_start[top]
        cursor[: bottom - top] = row_start[top:bottom]
        for limit in range(tile, nodes + tile, tile):
            for c in range(top, bottom):
                begin, end = cursor[c - top], _until(key, cursor[c - top], row_start[c + 1], limit)
                cursor[c - top] = end
                for e in range(begin, end):
                    b = key[e]
                    scores[e - base] = _dot(q[c, h], k[b, h])
                    p[e - base] = _unnormalised(scores[e - base], beta[h], peak[c, h]) / total[c, h]
                    slopes[e - base] = _dots(gu[c, h], k[b, h], gv[b, h], q[c, h])
        for c in range(top, bottom):
            row = slice(row_start[c] - base, row_start[c + 1] - base)
            mean[c, h], gbeta[c, h] = _slopes_to_changes(p[row], slopes[row], scores[row], beta[h])
        cursor[: bottom - top] = row_start[top:bottom]
        for limit in range(tile, nodes + tile, tile):
            for c in range(top, bottom):
                begin, end = cursor[c - top], _until(key, cursor[c - top], row_start[c + 1], limit)
                cursor[c - top] = end
                for block in range(begin, end, PART):
                    for e in range(block, min(block + PART, end)):
                        b, w, change = key[e], p[e - base], slopes[e - base]
                        for y in range(width):
                            part[y] += w * gv[b, h, y] + change * k[b, h, y]
                    _flush(part, gq[c, h])


@kernel
def _key_gradient(q, k, beta, peak, total, gu, gv, mean, start, query, gk, tile, low, high):
    nodes, heads, width = q.shape
    rows = _together(tile, nodes, low, high)
    cursor, part = np.empty(rows, np.int64), np.zeros(width, q.dtype)
    p, changes = np.empty((2, PART), q.dtype)
    for group, h in np.ndindex(((high - low + rows - 1) // rows, heads)):
        top = low + group * rows
        bottom = min(top + rows, high)
        cursor[: bottom - top] = start[top:bottom]
        for limit in range(tile, nodes + tile, tile):
            for b in range(top, bottom):
                begin, end = cursor[b - top], _until(query, cursor[b - top], start[b + 1], limit)
                cursor[b - top] = end
                for block in range(begin, end, PART):
                    queries = query[block : min(block + PART, end)]
                    for j in range(len(queries)):
                        c = queries[j]
                        p[j] = _unnormalised(_dot(q[c, h], k[b, h]), beta[h], peak[c, h]) / total[c, h]
                        slope = _dots(gu[c, h], k[b, h], gv[b, h], q[c, h])
                        changes[j] = beta[h] * p[j] * (slope - mean[c, h])
                    for j in range(len(queries)):
                        c, w, change = queries[j], p[j], changes[j]
                        for y in range(width):
                            part[y] += w * gu[c, h, y] + change * q[c, h, y]
                    _flush(part, gk[b, h])


def query_term(
    q: Tensor, k: Tensor, beta: Tensor, edges: SortedEdges, only_partition: bool = False, clamp: float = math.inf
) -> tuple[Tensor, Tensor, Tensor]:
    """sum_B P_CB K_B of each query C, with the peak and total of its softmax.

    Args:
        q: Queries, (N, H, Y).
        k: Keys, (M, H, Y), or (M, 1, Y) if all heads share them. M is N unless ``edges`` are those of a block.
        beta: Inverse temperatures, (H,).
        edges: Which tokens attend to which.
        only_partition: If True, the sum is not computed and its tensor is empty.
        clamp: Limit the scores to -clamp .. clamp.

    Returns:
        (N, H, Y), (N, H), (N, H).
    """
    u = q.new_zeros(0 if only_partition else len(q), *q.shape[1:])
    peak, total = (q.new_empty(q.shape[:2]) for _ in range(2))
    index = arrays(edges.row_start, edges.key)
    arguments = (*arrays(q, k, beta, clamp / beta.abs()), *index, *arrays(u, peak, total), tile_size(k, edges))
    run(_query_term, index[0], arguments)
    return u, peak, total


def key_term(
    q: Tensor, values: Tensor, k: Tensor, beta: Tensor, peak: Tensor, total: Tensor, edges: SortedEdges,
    clamp: float = math.inf,
) -> Tensor:  # fmt: skip
    """sum_C P_CB values_C of each key B, (N, H, Y).

    Args:
        q, values: Queries and what is summed, (M, H, Y), or (M, 1, Y) if all heads share them.
        k: Keys, (N, H, Y).
        beta, edges, clamp: See :func:`query_term`.
        peak, total: Softmax of the queries, (M, H).
    """
    v = torch.zeros_like(k, memory_format=torch.contiguous_format)
    index = arrays(*edges.by_key)
    tensors = arrays(q, values, k, beta, clamp / beta.abs(), peak, total)
    run(_key_term, index[0], (*tensors, *index, v.numpy(), tile_size(q, edges)))
    return v


def attention_gradient(
    q: Tensor, k: Tensor, beta: Tensor, peak: Tensor, total: Tensor, grad_u: Tensor, grad_v: Tensor, edges: SortedEdges
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to q, k (N, H, Y) and beta (H,) from those of both terms, (N, H, Y)."""
    gq, gk = (torch.zeros_like(q, memory_format=torch.contiguous_format) for _ in range(2))
    mean, gbeta = (q.new_empty(q.shape[:2]) for _ in range(2))
    tensors, tile = arrays(q, k, beta, peak, total, grad_u, grad_v), tile_size(q, edges)
    index = arrays(edges.row_start, edges.key)
    run(_query_gradient, index[0], (*tensors, *index, *arrays(gq, mean, gbeta), tile))
    index = arrays(*edges.by_key)
    run(_key_gradient, index[0], (*tensors, mean.numpy(), *index, gk.numpy(), tile))
    return gq, gk, gbeta.double().sum(0).to(beta.dtype)
