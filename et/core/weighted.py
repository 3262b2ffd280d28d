"""Energy attention weighted by a parameterised adjacency (paper eq. 24 and 25), along edges and between all pairs.

The score of key B for query C in head h is

    z_h = ahat_h(C, B) * sum_h' mix(h', h) beta_h' K_h'B . Q_h'C

with ``ahat`` the parameterised adjacency of eq. 24 and ``mix`` an optional (H, H) matrix over heads (in the paper the
identity). A pair whose ``ahat`` is exactly 0 is no edge. ``ahat`` is a constant of the energy: it is computed once from
the initial tokens. With P = softmax of z over the keys, the update's weights are

    c_h = d/d(K_h . Q_h) sum_h' 1/beta_h' logsumexp z_h' = beta_h sum_h' mix(h, h') P_h' ahat_h' / beta_h'

and simply P * ahat if ``mix`` is the identity.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from et.core.csr import SortedEdges
from et.core.precision import at_least_float32, differentiable_gradient
from et.core.sparse import check_shapes, edge_aggregate, edge_scores, segment_logsumexp, segment_softmax, select_backend


def _weighted_scores(products: Tensor, ahat: Tensor, beta: Tensor, head_mix: Tensor | None) -> Tensor:
    """z from inner products and ahat, both (..., H) in the last axis; -inf where ahat is 0."""
    scores = products * beta.to(products.dtype)
    if head_mix is not None:
        scores = scores @ head_mix.to(scores.dtype)
    ahat = ahat.to(scores.dtype)
    return (scores * ahat).masked_fill(ahat == 0, -torch.inf)


def _update_weights(p: Tensor, ahat: Tensor, beta: Tensor, head_mix: Tensor | None) -> Tensor:
    """c from P and ahat, both (..., H) in the last axis (see the module's text)."""
    weights = p * ahat.to(p.dtype)
    if head_mix is None:
        return weights
    beta = beta.to(p.dtype)
    return (weights / beta) @ head_mix.to(p.dtype).mT * beta


class WeightedEdges:
    """Weighted attention along the edges of a graph; memory grows with E x H, never with N x N or E x H x Y.

    Args:
        edges: (2, E) integers as in PyG, row 0 the key B, row 1 the query C; or sorted edges, in whose order ``weight``
            is given.
        weight: ahat on the edges, (E, H). An edge whose weight in a head is exactly 0 is ignored in that head.
        num_nodes: Number of nodes N; needed with an edge_index.
        head_mix: Mixing matrix of the heads, (H, H). If None, the identity.
    """

    def __init__(
        self, edges: Tensor | SortedEdges, weight: Tensor, num_nodes: int | None = None, head_mix: Tensor | None = None
    ):
        if not isinstance(edges, SortedEdges):
            if num_nodes is None:
                raise ValueError("num_nodes is needed with an edge_index")
            edges = SortedEdges.from_edge_index(edges, num_nodes)
            weight = weight[edges.order]
        if weight.dim() != 2 or weight.shape[0] != edges.num_edges:
            raise ValueError(f"weight must be ({edges.num_edges} edges, H heads), not {tuple(weight.shape)}")
        self.edges, self.weight, self.head_mix = edges, weight, head_mix

    def _scores(self, q: Tensor, k: Tensor, beta: Tensor) -> Tensor:
        return _weighted_scores(edge_scores(q, k, self.edges), self.weight, beta, self.head_mix)

    def log_partition(self, q: Tensor, k: Tensor, beta: Tensor) -> Tensor:
        """log of the sum over a query's edges of exp(z): q, k (N, H, Y) -> (N, H); 0 for a query without keys."""
        check_shapes(q, self.edges)
        return segment_logsumexp(self._scores(q, k, beta), self.edges)

    def attend(self, q: Tensor, k: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """(sum_B c_CB K_B, sum_C c_CB Q_C), each (N, H, Y)."""
        check_shapes(q, self.edges)
        if self.head_mix is None and _has_kernels(q):
            dtype, (q, k) = q.dtype, (at_least_float32(x).contiguous() for x in (q, k))
            u, v = _WeightedAttention.apply(q, k, beta.to(q.dtype), self.weight.to(q.dtype).contiguous(), self.edges)
            return u.to(dtype), v.to(dtype)
        q, k = q.contiguous(), k.contiguous()  # once, not in each of the kernels below and again in their gradients
        return _weighted_attention(q, k, beta, self.weight, self.head_mix, self.edges)


def _weighted_attention(
    q: Tensor, k: Tensor, beta: Tensor, ahat: Tensor, head_mix: Tensor | None, edges: SortedEdges
) -> tuple[Tensor, Tensor]:
    """Both terms of the update from operations that are differentiable any number of times."""
    scores = _weighted_scores(edge_scores(q, k, edges), ahat, beta, head_mix)
    c = _update_weights(segment_softmax(scores, edges), ahat, beta, head_mix)
    return edge_aggregate(c, k, edges), edge_aggregate(c, q, edges, to_keys=True)


def _has_kernels(tensor: Tensor) -> bool:
    """True if the compiled kernels of weighted attention run on the device of ``tensor``."""
    return select_backend(None, tensor).__name__ == "et.core.kernels.numba.sparse"


class _WeightedAttention(Function):
    """Both terms of the update without a head mix, in two passes over the edges instead of six operations."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, beta: Tensor, ahat: Tensor, edges: SortedEdges
    ) -> tuple[Tensor, Tensor]:
        from et.core.kernels.numba import weighted as kernels_weighted

        u, v, products, p = kernels_weighted.attention(q, k, beta, ahat, edges)
        ctx.save_for_backward(q, k, beta, ahat, products, p)
        ctx.edges = edges
        return u, v

    @staticmethod
    def backward(ctx: Any, grad_u: Tensor, grad_v: Tensor) -> tuple[Tensor | None, ...]:
        from et.core.kernels.numba import weighted as kernels_weighted

        if torch.is_grad_enabled():  # create_graph=True: this gradient will itself be differentiated
            inputs = q, k, beta, ahat = ctx.saved_tensors[:4]
            outputs = _weighted_attention(q, k, beta, ahat, None, ctx.edges)
            return *differentiable_gradient(outputs, inputs, ctx.needs_input_grad[:4], (grad_u, grad_v)), None
        q, k, beta, ahat, products, p = ctx.saved_tensors
        gradients = kernels_weighted.attention_gradient(q, k, beta, ahat, products, p, grad_u, grad_v, ctx.edges)
        return *gradients, None


class _CrossProducts(Function):
    """x_C[i] . x_B[j] on the edges: (N, R, D) -> (E, R, R)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, edges: SortedEdges) -> Tensor:
        from et.core.kernels.numba import weighted as kernels_weighted

        ctx.save_for_backward(x)
        ctx.edges = edges
        return kernels_weighted.cross_products(x, edges)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from et.core.kernels.numba import weighted as kernels_weighted

        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            outputs = _cross_products(x, ctx.edges)
            return *differentiable_gradient(outputs, (x,), ctx.needs_input_grad[:1], grad), None
        return kernels_weighted.cross_products_gradient(grad, x, ctx.edges), None


def _cross_products(x: Tensor, edges: SortedEdges) -> Tensor:
    """:class:`_CrossProducts` from plain operations."""
    rows = x.shape[1]
    products = edge_scores(x.repeat_interleave(rows, dim=1), x.repeat(1, rows, 1), edges)
    return products.unflatten(1, (rows, rows))


class WeightedPairs:
    """Weighted attention between all pairs of tokens: the dense counterpart, and the released code's padded form.

    Its update has first-order gradients only.

    Args:
        ahat: Parameterised adjacency, (..., N, N, H), query before key. A pair whose value is exactly 0 is not an edge.
        head_mix: Mixing matrix of the heads, (H, H). If None, the identity.
    """

    def __init__(self, ahat: Tensor, head_mix: Tensor | None = None):
        self.ahat, self.head_mix = ahat, head_mix

    def log_partition(self, q: Tensor, k: Tensor, beta: Tensor) -> Tensor:
        """log of the sum over a query's keys of exp(z): q, k (..., N, H, Y) -> (..., N, H); 0 without keys."""
        products = torch.einsum("...chy,...bhy->...cbh", q, k)
        scores = _weighted_scores(products, self.ahat, beta, self.head_mix)
        alone = scores.detach().isneginf().all(-2, keepdim=True)
        return torch.logsumexp(scores.masked_fill(alone, 0.0), -2).masked_fill(alone.squeeze(-2), 0.0)

    def attend(self, q: Tensor, k: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """(sum_B c_CB K_B, sum_C c_CB Q_C), each (..., N, H, Y)."""
        shape, graphs, (n, heads, width) = q.shape, math.prod(q.shape[:-3]), q.shape[-3:]
        q, k = (x.reshape(graphs, n, heads, width).transpose(1, 2) for x in (q, k))  # (G, H, N, Y)
        ahat = self.ahat.movedim(-1, -3).reshape(graphs, heads, n, n)
        head_mix = torch.eye(heads, dtype=ahat.dtype, device=q.device) if self.head_mix is None else self.head_mix
        u, v = _PairsAttention.apply(q, k, beta, ahat, head_mix)
        return u.transpose(1, 2).reshape(shape), v.transpose(1, 2).reshape(shape)


class _PairsAttention(Function):
    """Both terms of the update for graphs (G, H, N, Y), a few at a time, so that their attention matrices stay in the
    cache.

    The backward pass recomputes the matrices: nothing of size N x N is stored but ahat.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, beta: Tensor, ahat: Tensor, head_mix: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(q, k, beta, ahat, head_mix)
        u, v = torch.empty_like(q), torch.empty_like(k)
        for part in _parts(ahat):
            _, _, p = _pair_maps(q[part], k[part], beta, ahat[part], head_mix)
            c = _mix_heads((head_mix * beta[:, None] / beta).to(p.dtype), p.mul_(ahat[part])).to(q.dtype)
            torch.matmul(c, k[part], out=u[part])
            torch.matmul(c.mT, q[part], out=v[part])
        return u, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_u: Tensor, grad_v: Tensor) -> tuple[Tensor | None, ...]:
        q, k, beta, ahat, head_mix = ctx.saved_tensors
        gq, gk, gahat = (torch.empty_like(x) for x in (q, k, ahat))
        gbeta, gmix = (torch.zeros_like(at_least_float32(x)) for x in (beta, head_mix))  # sums over all graphs
        for part in _parts(ahat):
            into = gq[part], gk[part], gbeta, gahat[part], gmix
            _pair_gradients(q[part], k[part], beta, ahat[part], head_mix, grad_u[part], grad_v[part], into)
        return gq, gk, gbeta.to(beta.dtype), gahat, gmix.to(head_mix.dtype)


def _parts(maps: Tensor) -> list[slice]:
    """Slices of (G, H, N, N), at least a graph: a megabyte in float32 on a CPU, for its cache, 64 on a GPU."""
    numbers = 1 << (18 if maps.device.type == "cpu" else 24)
    step = max(1, numbers // max(1, math.prod(maps.shape[1:])))
    return [slice(start, start + step) for start in range(0, len(maps), step)]


def _mix_heads(matrix: Tensor, maps: Tensor) -> Tensor:
    """sum over h' of matrix[h, h'] maps[h']: (H, H), (G, H, N, N) -> (G, H, N, N)."""
    return (matrix @ maps.flatten(2)).view_as(maps)


def _head_products(left: Tensor, right: Tensor) -> Tensor:
    """Inner products of all maps of the one with all of the other, (G, H, N, N) twice -> (H, H)."""
    return (left.flatten(2) @ right.flatten(2).mT).sum(0)


def _pair_maps(q: Tensor, k: Tensor, beta: Tensor, ahat: Tensor, head_mix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(G, H, N, N) each: products K . Q, what ahat multiplies in z, and P; at least float32."""
    products = at_least_float32(q @ k.mT)
    mixed = _mix_heads((head_mix * beta[:, None]).mT.to(products.dtype), products)
    scores, no_edge = mixed * ahat, ahat == 0
    if ahat.device.type == "cpu" and not no_edge.any():
        # The released model's bias turns every pair into an edge; then a sixth of the time goes into empty masks.
        return products, mixed, torch.softmax(scores, -1)
    p = torch.softmax(scores.masked_fill_(no_edge, -torch.inf), -1)
    # A query without keys has no softmax; its row is 0. Any other NaN is kept.
    return products, mixed, p.masked_fill_(no_edge.all(-1, keepdim=True), 0.0)


def _pair_gradients(
    q: Tensor,
    k: Tensor,
    beta: Tensor,
    ahat: Tensor,
    head_mix: Tensor,
    grad_u: Tensor,
    grad_v: Tensor,
    into: tuple[Tensor, ...],
) -> None:
    """Write the gradients of q, k and ahat, and add those of beta and head_mix, to ``into`` (q, k, beta, ...)."""
    products, mixed, p = _pair_maps(q, k, beta, ahat, head_mix)
    outer, inner = ((head_mix * beta[:, None] / b).to(p.dtype) for b in (beta, 1))  # what mixes P ahat, and K . Q
    weights = p * ahat
    c = _mix_heads(outer, weights).to(q.dtype)
    grad_c = at_least_float32(grad_u @ k.mT + q @ grad_v.mT)
    grad_weights = _mix_heads(outer.mT, grad_c)
    grad_outer = _head_products(grad_c, weights)
    slope = grad_weights * ahat
    grad_scores = slope.sub_((p * slope).sum(-1, keepdim=True)).mul_(p)
    into[3].copy_(torch.addcmul(grad_weights.mul_(p), grad_scores, mixed))
    grad_mixed = grad_scores.mul_(ahat)
    grad_inner = _head_products(products, grad_mixed)
    grad_products = _mix_heads(inner, grad_mixed).to(q.dtype)
    into[0].copy_(c @ grad_v + grad_products @ k)
    into[1].copy_(c.mT @ grad_u + grad_products.mT @ q)
    into[4].add_(grad_outer * beta[:, None] / beta + grad_inner * beta[:, None])
    from_outer = grad_outer * head_mix
    into[2].add_((from_outer / beta).sum(1) - (from_outer * beta[:, None]).sum(0) / beta**2)
    into[2].add_((grad_inner * head_mix).sum(1))


def edge_outer_convolution(x: Tensor, kernel: Tensor, edges: SortedEdges, first: Tensor, last: Tensor) -> Tensor:
    """3 x 3 convolution of the outer product X X^T, evaluated at the edges only (first factor of eq. 24).

    At an edge (C, B) it is sum over a, b of kernel[a, b] x_{C+a-1} . x_{B+b-1}: nine inner products of shifted tokens,
    each computed along the edges and mixed into the H filters. Tokens beyond the ends of a graph count as zero, so
    graphs that share a batch do not see each other.

    Args:
        x: Tokens of all graphs one after the other, (N, D).
        kernel: (3, 3, H), first axis along the queries (cross-correlation, as deep learning has it).
        edges: E edges.
        first, last: (N,) bool, true for the first and the last token of each graph.

    Returns:
        (E, H), in the order of ``edges``.
    """
    return edge_mixed_products(shifted_tokens(at_least_float32(x), first, last), kernel, edges)


def edge_mixed_products(x: Tensor, kernel: Tensor, edges: SortedEdges) -> Tensor:
    """sum over a, b of kernel[a, b] x_C[a] . x_B[b] at the edges: (N, R, D), (R, R, H) -> (E, H), at least float32."""
    x = at_least_float32(x)
    products = (_CrossProducts.apply if _has_kernels(x) else _cross_products)(x, edges).flatten(1)
    return products @ kernel.flatten(0, 1).to(products.dtype)


def shifted_tokens(x: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """(x_{i-1}, x_i, x_{i+1}) for each token i, zero beyond the ends of its graph: (N, D) -> (N, 3, D)."""
    before = F.pad(x, (0, 0, 1, 0))[:-1].masked_fill(first[:, None], 0.0)
    after = F.pad(x, (0, 0, 0, 1))[1:].masked_fill(last[:, None], 0.0)
    return torch.stack([before, x, after], dim=1)


def outer_convolution(x: Tensor, kernel: Tensor) -> Tensor:
    """3 x 3 convolution of X X^T at all pairs, with zero padding, in at least float32 (first factor of eq. 24).

    Args:
        x: Tokens, (..., N, D).
        kernel: (3, 3, H).

    Returns:
        (..., N, N, H).
    """
    x = at_least_float32(x)
    outer = x @ x.mT  # (..., N, N)
    if outer.shape[-1] == 0:
        return outer[..., None].expand(*outer.shape, kernel.shape[-1])
    images = outer.reshape(math.prod(outer.shape[:-2]), 1, *outer.shape[-2:])
    convolved = F.conv2d(images, kernel.to(x.dtype).permute(2, 0, 1)[:, None], padding=1)  # (G, H, N, N)
    return convolved.movedim(1, -1).reshape(*outer.shape, kernel.shape[-1])
