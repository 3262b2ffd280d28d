"""Attention between all pairs of tokens, exact and in bounded memory: attention matrices are computed in parts.

An attention matrix here is any (N, N) matrix of one head and sample: scores, P, or their gradients. A part is several
matrices, or some rows of one. All parts share one buffer, so memory does not grow with N and a part stays in the cache
until it is read. Both terms of the update use the same matrix. Small matrices are stored for the backward pass, large
ones are recomputed.

With the projections Q, K of one head, beta inside Q' = beta Q, and gradients U', V' of the two terms U = P K and V =
P^T Q, the gradients are those of conventional attention with one more row or column block:

    dP = [U' | Q] [K | V']^T,   dS = P * (dP - rowsum(P * dP)),   rowsum(P * dP) = U' . U + Q . (P V')
    dQ = beta dS K + P V',      dK = dS^T Q' + P^T U',            dbeta = sum Q . (dS K)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from et.core.kernels import flex as kernels_flex
from et.core.precision import at_least_float32, differentiable_gradient, needs_plain_operations, no_autocast

BACKENDS = ("auto", "triton", "flex", "chunked")
PART = 1 << 20  # elements of a part, 4 MB in float32: fits a CPU's cache
PART_ON_GPU = 1 << 26  # elements of a part that fills a GPU
MIN_ROWS = 16  # minimum number of rows in a part, however long they are
KEPT = 1 << 24  # maximum number of elements of one step's matrices to store for the backward pass, 64 MB in float32


def attention(qk: Tensor, beta: Tensor, self_attention: bool = False, store_attention: bool | None = None) -> Tensor:
    """Both terms of the update, P K and P^T Q, packed like their inputs (eq. 3, below eq. 8).

    Args:
        qk: Queries and keys, (..., N, 2, H, Y); index 0 of the third last axis are the queries.
        beta: Inverse temperatures, (H,).
        self_attention: If True, a token is among its own keys.
        store_attention: If True, store P, (..., H, N, N), for the backward pass; if False, compute it there again in
            parts. If None, use the kernel of :func:`fused_kernel` if there is one; else store P if it has at most
            ``KEPT`` elements.

    Returns:
        The two terms, (..., N, 2, H, Y).
    """
    if qk.shape[-4] == 1 and not self_attention:
        return qk * beta.to(qk.dtype)[:, None] * 0.0  # a token without keys; its gradients are 0, not None
    if needs_plain_operations(qk) or qk.numel() == 0:
        return plain_attention(qk, beta, self_attention)
    if store_attention is None:
        kernel = fused_kernel(qk)
        if kernel is not None:
            return kernel(qk, beta, self_attention)
        store_attention = qk.numel() // (2 * qk.shape[-1]) * qk.shape[-4] <= KEPT
    return _Attention.apply(qk, beta, self_attention, store_attention)


def fused_kernel(qk: Tensor) -> Callable[[Tensor, Tensor, bool], Tensor] | None:
    """The fused attention for ``qk``, or None if it is computed in parts.

    The environment variable ET_DENSE_BACKEND chooses ``triton``, ``flex`` or ``chunked`` (in parts). ``auto``, the
    default, takes Triton's kernels on a GPU in half precision; else FlexAttention where :func:`kernels_flex.suits`.

    Raises:
        ValueError: There is no such backend, or it cannot compute ``qk`` here.
    """
    name = os.environ.get("ET_DENSE_BACKEND", "auto")
    if name not in BACKENDS:
        raise ValueError(f"no dense backend {name!r}: ET_DENSE_BACKEND must be one of {', '.join(BACKENDS)}")
    triton, half = _triton_kernels(qk), qk.dtype in (torch.bfloat16, torch.float16)
    if name == "triton" or (name == "auto" and qk.is_cuda and half and triton is not None):
        found = triton
    elif name == "flex" or (name == "auto" and kernels_flex.suits(qk)):
        found = kernels_flex.attention if name == "auto" or kernels_flex.supports(qk) else None
    else:
        return None
    if found is None:
        raise ValueError(
            f"ET_DENSE_BACKEND={name} cannot compute {qk.dtype} with head dimension {qk.shape[-1]} on {qk.device}: "
            "leave it out, or set it to chunked"
        )
    return found


def _triton_kernels(qk: Tensor) -> Callable[[Tensor, Tensor, bool], Tensor] | None:
    """Attention by the Triton kernels, or None if they cannot compute ``qk`` here."""
    if not (qk.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"):
        return None
    try:
        from et.core.kernels import triton_dense
    except ImportError:
        return None
    return triton_dense.attention if triton_dense.supports(qk) else None


def plain_attention(qk: Tensor, beta: Tensor, self_attention: bool = False) -> Tensor:
    """:func:`attention` from plain operations on whole matrices, for torch.compile, export and double backward."""
    q, k = qk.transpose(-4, -2).unbind(-3)  # (..., H, N, Y)
    scores = (q * beta.to(q.dtype)[:, None, None]) @ k.mT
    p = torch.softmax(_without_diagonal(scores, self_attention), dim=-1)
    return torch.stack([p @ k, p.mT @ q], dim=-3).transpose(-4, -2)


def log_partition(q: Tensor, k: Tensor, beta: Tensor, self_attention: bool = False) -> Tensor:
    """Log of sum_B exp(beta K_B . Q_C) of each query, on whole matrices if gradients are enabled, else in parts.

    Args:
        q, k: Queries and keys, (..., N, H, Y).
        beta: Inverse temperatures, (H,).
        self_attention: If True, a token is among its own keys.

    Returns:
        (..., N, H).
    """
    beta = beta.to(q.dtype)[:, None, None]
    q, k = q.transpose(-3, -2) * beta, k.transpose(-3, -2)
    if torch.is_grad_enabled() or needs_plain_operations(q) or q.numel() == 0:
        return torch.logsumexp(_without_diagonal(q @ k.mT, self_attention), dim=-1).mT
    n, width = q.shape[-2:]
    (q, k), shape = (x.reshape(-1, n, width) for x in (q, k)), q.shape[:-1]
    found, buffer = q.new_empty(len(q), n), _Buffer(q, len(q), n)
    for part in _parts(q, n):
        scores = torch.bmm(q[part], k[part.matrices].mT, out=buffer.matrices(part))
        torch.logsumexp(_mask_diagonal_(scores, part, self_attention), dim=-1, out=found[part])
    return found.view(shape).mT


def _without_diagonal(scores: Tensor, self_attention: bool) -> Tensor:
    if self_attention:
        return scores
    return scores.masked_fill(torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device), -torch.inf)


class _Part(NamedTuple):
    """A range of attention matrices (samples times heads) and a range of their rows."""

    matrices: slice
    rows: slice


def _part_size(like: Tensor) -> int:
    return PART if like.device.type == "cpu" else PART_ON_GPU


def _parts(q: Tensor, n: int) -> Iterator[_Part]:
    """Split the (n, n) matrices of ``q`` into parts of about PART elements: several matrices, or rows of one."""
    count, size = len(q), _part_size(q)
    together, rows = max(1, size // (n * n)), min(n, max(MIN_ROWS, size // n))
    for first in range(0, count, together):
        for row in range(0, n, rows):
            yield _Part(slice(first, min(first + together, count)), slice(row, min(row + rows, n)))


def _by_head(x: Tensor) -> Tensor:
    """(..., N, 2, H, Y) -> (2, samples, H, N, Y), contiguous, as batched products need it."""
    return x.reshape(-1, *x.shape[-4:]).permute(2, 0, 3, 1, 4).contiguous()


def _mask_diagonal_(scores: Tensor, part: _Part, self_attention: bool) -> Tensor:
    if not self_attention:
        scores.diagonal(part.rows.start, dim1=-2, dim2=-1).fill_(-torch.inf)
    return scores


def _softmax_(scores: Tensor, part: _Part, self_attention: bool) -> Tensor:
    """Softmax of a part's scores, in place; without the diagonal unless ``self_attention``."""
    return torch.softmax(_mask_diagonal_(scores, part, self_attention), dim=-1, out=scores)


def _add_product(total: Tensor, left: Tensor, right: Tensor, part: _Part) -> None:
    """Write left @ right to ``total`` for the first rows of a matrix, add it for the others."""
    if part.rows.start == 0:
        torch.bmm(left, right, out=total)
    else:
        total.baddbmm_(left, right)


class _Buffer:
    """Memory for one part, reused by the next."""

    def __init__(self, like: Tensor, count: int, n: int):
        self.n, self.memory = n, like.new_empty(min(count * n * n, max(_part_size(like), MIN_ROWS * n)))

    def matrices(self, part: _Part) -> Tensor:
        shape = part.matrices.stop - part.matrices.start, part.rows.stop - part.rows.start, self.n
        return self.memory[: math.prod(shape)].view(shape)


class _Attention(Function):
    @staticmethod
    def forward(ctx: Any, qk: Tensor, beta: Tensor, self_attention: bool, store_attention: bool) -> Tensor:
        n, width = qk.shape[-4], qk.shape[-1]
        by_head = _by_head(qk)  # (2, samples, H, N, Y)
        scaled = (by_head[0] * beta.to(qk.dtype)[:, None, None]).view(-1, n, width)
        q, k = by_head.view(2, -1, n, width)
        uv = torch.empty_like(by_head)
        u, v = uv.view(2, -1, n, width)
        kept = qk.new_empty(len(k), n, n) if store_attention and any(ctx.needs_input_grad) else None
        matrices_of = _Buffer(qk, len(k), n).matrices if kept is None else kept.__getitem__
        for part in _parts(k, n):
            p = matrices_of(part)  # (matrices, rows, N)
            torch.bmm(scaled[part], k[part.matrices].mT, out=p)  # scores
            _softmax_(p, part, self_attention)
            torch.bmm(p, k[part.matrices], out=u[part])  # (matrices, rows, Y)
            _add_product(v[part.matrices], p.mT, q[part], part)  # (matrices, N, Y)
        out = uv.permute(1, 3, 0, 2, 4).reshape(qk.shape)  # (..., N, 2, H, Y)
        ctx.save_for_backward(qk, beta, out, kept)
        ctx.self_attention = self_attention
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qk, beta, out, kept = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: this gradient will itself be differentiated
            outputs = plain_attention(qk, beta, ctx.self_attention)
            return *differentiable_gradient(outputs, (qk, beta), ctx.needs_input_grad[:2], grad), None, None
        with no_autocast(grad):
            return *_gradient(qk, beta, out, kept, grad, ctx.self_attention), None, None


def _gradient(
    qk: Tensor, beta: Tensor, out: Tensor, kept: Tensor | None, grad: Tensor, self_attention: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of ``qk`` and ``beta`` (formulas in the module's docstring)."""
    n, heads, width = qk.shape[-4], *qk.shape[-2:]
    q, k = _by_head(qk).view(2, -1, n, width)
    grad_u, grad_v = _by_head(grad).view(2, -1, n, width)
    u = _by_head(out)[0].view(-1, n, width)
    of_head = beta.to(qk.dtype).repeat(len(q) // heads)[:, None, None]
    scaled, left, right = q * of_head, torch.cat([grad_u, q], -1), torch.cat([k, grad_v], -1)
    from_u = _dot(grad_u, u)
    grad_by_head = qk.new_empty(2, len(q) // heads, heads, n, width)
    grad_q, grad_k = grad_by_head.view(2, -1, n, width)
    grad_beta = from_u.new_zeros(len(q))
    buffers = [_Buffer(qk, len(q), n) for _ in range(1 if kept is not None else 2)]
    for part in _parts(q, n):
        if kept is None:
            p = torch.bmm(scaled[part], k[part.matrices].mT, out=buffers[1].matrices(part))
            _softmax_(p, part, self_attention)
        else:
            p = kept[part]
        from_v = torch.bmm(p, grad_v[part.matrices], out=grad_q[part])
        slope = torch.bmm(left[part], right[part.matrices].mT, out=buffers[0].matrices(part))
        # In the slope's dtype: torch subtracts float32 from bfloat16 many times slower than bfloat16 from bfloat16.
        exact = from_u[part] + _dot(q[part], from_v)
        rounded = exact.to(slope.dtype)
        slope.sub_(rounded).mul_(p)
        towards_k = slope @ k[part.matrices]
        if exact.dtype != slope.dtype:  # what rounding took from P * rowsum, times K
            towards_k += ((rounded - exact) * u[part]).to(slope.dtype)
        grad_beta[part.matrices] += _dot(q[part], towards_k).sum((-2, -1))
        from_v.addcmul_(towards_k, of_head[part.matrices])
        _add_product(grad_k[part.matrices], slope.mT, scaled[part], part)
        grad_k[part.matrices].baddbmm_(p.mT, grad_u[part])
    return grad_by_head.permute(1, 3, 0, 2, 4).reshape(qk.shape), grad_beta.view(-1, heads).sum(0).to(beta.dtype)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Inner products of rows, (..., Y) twice -> (..., 1), in at least float32."""
    return (at_least_float32(left) * right).sum(-1, keepdim=True)
