"""CPU kernels of weighted attention along edges and of its convolution (formulas: :mod:`et.core.weighted`).

Between the passes only (E, H) tensors are kept: the products s = K_B . Q_C and the softmax P. Every output row belongs
to one thread and is summed in a fixed order. Heads are the inner loop, because the heads of a node are adjacent in
memory.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from et.core.csr import SortedEdges
from et.core.kernels.numba.runtime import arrays, kernel, run


@kernel
def _forward_by_query(q, k, beta, ahat, row_start, key, s, p, u, low, high):
    """Products, softmax and the sums at the queries."""
    _, heads, width = q.shape
    peak, norm = np.empty(heads, q.dtype), np.empty(heads)
    for c in range(low, high):
        start, stop = row_start[c], row_start[c + 1]
        for h in range(heads):
            peak[h], norm[h] = -np.inf, 0
            for y in range(width):
                u[c, h, y] = 0
        for e in range(start, stop):
            b = key[e]
            for h in range(heads):
                product = q.dtype.type(0)
                for y in range(width):
                    product += q[c, h, y] * k[b, h, y]
                s[e, h] = product
                if ahat[e, h] != 0:
                    p[e, h] = product * beta[h] * ahat[e, h]
                    peak[h] = max(peak[h], p[e, h])
        for e in range(start, stop):
            for h in range(heads):
                p[e, h] = np.exp(p[e, h] - peak[h]) if ahat[e, h] != 0 else 0
                norm[h] += p[e, h]
        for e in range(start, stop):
            b = key[e]
            for h in range(heads):
                if p[e, h] != 0:
                    p[e, h] = p[e, h] / norm[h]
                    weight = p[e, h] * ahat[e, h]
                    for y in range(width):
                        u[c, h, y] += weight * k[b, h, y]


@kernel
def _forward_by_key(q, ahat, p, start, query, position, v, low, high):
    """Sums at the keys, over the queries that attend to them."""
    _, heads, width = q.shape
    for b in range(low, high):
        for h in range(heads):
            for y in range(width):
                v[b, h, y] = 0
        for e in range(start[b], start[b + 1]):
            c, at = query[e], position[e]
            for h in range(heads):
                weight = p[at, h] * ahat[at, h]
                for y in range(width):
                    v[b, h, y] += weight * q[c, h, y]


@kernel
def _backward_by_query(q, k, beta, ahat, s, p, gu, gv, row_start, key, gs, gahat, gbeta, gq, low, high):
    """Gradients of products and ahat, and their contribution to the queries."""
    _, heads, width = q.shape
    mean = np.empty(heads)
    for c in range(low, high):
        start, stop = row_start[c], row_start[c + 1]
        for h in range(heads):
            mean[h] = 0
            gbeta[c, h] = 0
            for y in range(width):
                gq[c, h, y] = 0
        for e in range(start, stop):
            b = key[e]
            for h in range(heads):
                slope = q.dtype.type(0)
                for y in range(width):
                    slope += gu[c, h, y] * k[b, h, y] + gv[b, h, y] * q[c, h, y]
                gs[e, h] = slope
                mean[h] += p[e, h] * slope * ahat[e, h]
        for e in range(start, stop):
            b = key[e]
            for h in range(heads):
                a = ahat[e, h]
                change = q.dtype.type(p[e, h] * (gs[e, h] * a - mean[h]))  # dL/dz
                gahat[e, h] = gs[e, h] * p[e, h] + change * beta[h] * s[e, h]
                gbeta[c, h] += change * a * s[e, h]
                change *= beta[h] * a
                gs[e, h] = change
                weight = p[e, h] * a
                for y in range(width):
                    gq[c, h, y] += weight * gv[b, h, y] + change * k[b, h, y]


@kernel
def _backward_by_key(q, ahat, p, gs, gu, start, query, position, gk, low, high):
    _, heads, width = q.shape
    for b in range(low, high):
        for h in range(heads):
            for y in range(width):
                gk[b, h, y] = 0
        for e in range(start[b], start[b + 1]):
            c, at = query[e], position[e]
            for h in range(heads):
                weight, change = p[at, h] * ahat[at, h], gs[at, h]
                for y in range(width):
                    gk[b, h, y] += weight * gu[c, h, y] + change * q[c, h, y]


def attention(
    q: Tensor, k: Tensor, beta: Tensor, ahat: Tensor, edges: SortedEdges
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both terms of the update and the tensors of its backward pass.

    Args:
        q, k: Queries and keys, (N, H, Y).
        beta: Inverse temperatures, (H,).
        ahat: Parameterised adjacency in the order of ``edges``, (E, H). All tensors are contiguous and of one dtype.
        edges: Which tokens attend to which.

    Returns:
        sum_B c_CB K_B and sum_C c_CB Q_C, each (N, H, Y); products and softmax, each (E, H).
    """
    u, v = torch.empty_like(q), torch.empty_like(k)
    s, p = torch.empty_like(ahat), torch.empty_like(ahat)
    index = arrays(edges.row_start, edges.key)
    run(_forward_by_query, index[0], (*arrays(q, k, beta, ahat), *index, *arrays(s, p, u)))
    index = arrays(*edges.by_key, edges.key_position)
    run(_forward_by_key, index[0], (*arrays(q, ahat, p), *index, v.numpy()))
    return u, v, s, p


def attention_gradient(
    q: Tensor, k: Tensor, beta: Tensor, ahat: Tensor, s: Tensor, p: Tensor, grad_u: Tensor, grad_v: Tensor,
    edges: SortedEdges,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients with respect to q, k, beta and ahat from those of both terms, (N, H, Y)."""
    gq, gk, gs, gahat = (torch.empty_like(t) for t in (q, k, ahat, ahat))
    gbeta = q.new_empty(q.shape[:2])
    index = arrays(edges.row_start, edges.key)
    tensors = arrays(q, k, beta, ahat, s, p, grad_u, grad_v)
    run(_backward_by_query, index[0], (*tensors, *index, *arrays(gs, gahat, gbeta, gq)))
    index = arrays(*edges.by_key, edges.key_position)
    run(_backward_by_key, index[0], (*arrays(q, ahat, p, gs, grad_u), *index, gk.numpy()))
    return gq, gk, gbeta.double().sum(0).to(beta.dtype), gahat


# ------------------------------------------------------------------------------------------- products of all pairs


@kernel
def _cross(x, row_start, key, out, low, high):
    _, rows, width = x.shape
    for c in range(low, high):
        for e in range(row_start[c], row_start[c + 1]):
            b = key[e]
            for i in range(rows):
                for j in range(rows):
                    total = x.dtype.type(0)
                    for y in range(width):
                        total += x[c, i, y] * x[b, j, y]
                    out[e, i, j] = total


@kernel
def _cross_gradient(g, x, start, other, position, by_key, gx, low, high):
    """Add the contribution of its edges to each node: as their query, or (``by_key``, through ``position``) as their
    key.
    """
    _, rows, width = x.shape
    for node in range(low, high):
        for e in range(start[node], start[node + 1]):
            far, at = other[e], position[e] if by_key else e
            for i in range(rows):
                for j in range(rows):
                    weight = g[at, j, i] if by_key else g[at, i, j]
                    for y in range(width):
                        gx[node, i, y] += weight * x[far, j, y]


def cross_products(x: Tensor, edges: SortedEdges) -> Tensor:
    """x_C[i] . x_B[j] on the edges (C, B) for all i, j: x (N, R, D) -> (E, R, R)."""
    out = x.new_empty(edges.num_edges, x.shape[1], x.shape[1])
    index = arrays(edges.row_start, edges.key)
    run(_cross, index[0], (*arrays(x), *index, out.numpy()))
    return out


def cross_products_gradient(grad: Tensor, x: Tensor, edges: SortedEdges) -> Tensor:
    """Gradient with respect to x of :func:`cross_products` from that of its result, (E, R, R) -> (N, R, D)."""
    gx = torch.zeros_like(x, memory_format=torch.contiguous_format)
    tensors = arrays(grad, x)
    index = arrays(edges.row_start, edges.key, edges.key[:0])
    run(_cross_gradient, index[0], (*tensors, *index, False, gx.numpy()))
    index = arrays(*edges.by_key, edges.key_position)
    run(_cross_gradient, index[0], (*tensors, *index, True, gx.numpy()))
    return gx
