"""Attention along edges: the differentiable operations, and the selection of a backend.

Backends: ``reference`` (plain gather and scatter), ``torch`` (the same in chunks of bounded memory, any device),
``numba`` (CPU) and ``triton`` (GPU). ``auto`` takes the fastest for the tensors' device, and ``reference`` under
torch.compile, export or torch.func, which cannot trace the others, and on the meta device. The environment variable
ET_SPARSE_BACKEND sets the backend of a process, the argument ``backend`` that of a call. All but the reference make no
tensor larger than (E, H), and :func:`attention` none larger than (N, H, Y).
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from et.core.csr import SortedEdges
from et.core.kernels import reference as kernels_reference
from et.core.precision import at_least_float32, differentiable_gradient, is_traced

__all__ = [
    "BACKENDS",
    "SortedEdges",
    "attention",
    "edge_aggregate",
    "edge_scores",
    "log_partition",
    "segment_logsumexp",
    "segment_softmax",
    "select_backend",
]

# The module of each backend, below et.core.kernels.
_MODULES = {"reference": "reference", "torch": "chunked", "numba": "numba.sparse", "triton": "triton"}
BACKENDS = ("auto", *_MODULES)


def select_backend(name: str | None, tensor: Tensor) -> ModuleType:
    """Module of kernels for the device of ``tensor``.

    Args:
        name: One of :data:`BACKENDS`. If None, that of the environment variable ET_SPARSE_BACKEND, or ``"auto"``.
        tensor: An operand.

    Raises:
        ValueError: There is no such backend, or it cannot run here.
    """
    name = name or os.environ.get("ET_SPARSE_BACKEND", "auto")
    if name not in BACKENDS:
        raise ValueError(f"no sparse backend {name!r}: choose one of {', '.join(BACKENDS)}")
    device = tensor.device.type
    if name == "auto" and (is_traced(tensor) or tensor.is_meta):
        return kernels_reference
    if name == "auto":
        fast = {"cpu": "numba", "cuda": "triton"}.get(device, "torch")
        name = fast if _can_import(fast) else "torch"
    if name == "numba" and device != "cpu":
        raise ValueError(f"the numba backend computes on the CPU, but the tensors are on {tensor.device}")
    if name == "triton" and device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"the triton backend computes on a GPU, but the tensors are on {tensor.device}")
    if not _can_import(name):
        raise ValueError(f"the sparse backend {name!r} needs the package {name!r}, which cannot be imported here")
    return _load(name)


def _load(name: str) -> ModuleType:
    return importlib.import_module(f"et.core.kernels.{_MODULES[name]}")


def _can_import(name: str) -> bool:
    try:
        _load(name)
    except ImportError:
        return False
    return True


# ---------------------------------------------------------------------------------------------- attention as a whole


def attention(
    q: Tensor, k: Tensor, beta: Tensor, edges: SortedEdges, clamp: float | None = None, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Both terms of the update along edges (eq. 17): (sum_B P_CB K_B, sum_C P_CB Q_C).

    P is the softmax of beta K_B . Q_C over the keys B of a query. The backward pass computes it again instead of
    storing it, so memory does not grow with the number of edges, except by some (E, H) tensors in double backward.

    Args:
        q, k: Queries and keys, (N, H, Y); computed in at least float32.
        beta: Inverse temperatures, (H,).
        edges: Which tokens attend to which.
        clamp: Limit the scores to -clamp .. clamp before the softmax, as the authors' released anomaly code does, at
            the cost of some (E, H) tensors. If None, no limit.
        backend: See :func:`select_backend`.

    Returns:
        The two terms, each (N, H, Y) in the dtype of ``q``.

    Raises:
        ValueError: ``q`` does not fit the edges, or the backend cannot run here.
    """
    kernels, dtype = select_backend(backend, q), q.dtype
    q, k, beta = _operands(q, k, beta, edges, half=clamp is None and getattr(kernels, "HALF_PRECISION", False))
    if kernels is kernels_reference:
        u, v = kernels.attention(q, k, beta, edges, clamp)
    elif clamp is not None:
        u, v = _attention_by_primitives(q, k, beta, edges, clamp, backend)
    else:
        u, v = _Attention.apply(q, k, beta, edges, backend)
    return u.to(dtype), v.to(dtype)


def log_partition(q: Tensor, k: Tensor, beta: Tensor, edges: SortedEdges, backend: str | None = None) -> Tensor:
    """Log of sum_B exp(beta K_B . Q_C) of each query, (N, H) in at least float32; 0 for a query without keys.

    Arguments as for :func:`attention`.
    """
    kernels = select_backend(backend, q)
    q, k, beta = _operands(q, k, beta, edges)
    if kernels is kernels_reference:
        return kernels.log_partition(q, k, beta, edges)
    return _LogPartition.apply(q, k, beta, edges, backend)


def check_shapes(q: Tensor, edges: SortedEdges) -> None:
    """Raise ValueError unless ``q`` is (N, H, Y) with the edges' N: compiled kernels would read out of bounds."""
    if q.dim() != 3 or q.shape[0] != edges.num_nodes:
        raise ValueError(
            f"the edges join {edges.num_nodes} nodes, but queries and keys are {tuple(q.shape)} instead of (nodes, "
            "heads, head dim); a batch of graphs is one graph whose nodes are those of all"
        )


def _operands(
    q: Tensor, k: Tensor, beta: Tensor, edges: SortedEdges, half: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Operands of a backend: queries and keys in at least float32 unless it takes ``half`` precision, beta always."""
    check_shapes(q, edges)
    beta = beta.to(torch.promote_types(q.dtype, torch.float32))
    if not half or q.dtype != k.dtype:
        q, k = at_least_float32(q), at_least_float32(k)
    return q.contiguous(), k.contiguous(), beta


def _attention_by_primitives(
    q: Tensor, k: Tensor, beta: Tensor, edges: SortedEdges, clamp: float | None, backend: str | None
) -> tuple[Tensor, Tensor]:
    """:func:`attention` with P stored, (E, H): differentiable any number of times."""
    scores = edge_scores(q, k, edges, backend) * beta
    if clamp is not None:
        scores = scores.clamp(-clamp, clamp)
    p = segment_softmax(scores, edges, backend)
    return edge_aggregate(p, k, edges, False, backend), edge_aggregate(p, q, edges, True, backend)


class _Attention(Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, beta: Tensor, edges: SortedEdges, backend: str | None
    ) -> tuple[Tensor, Tensor]:
        kernels = select_backend(backend, q)
        u, peak, total = kernels.query_term(q, k, beta, edges)
        ctx.save_for_backward(q, k, beta, peak, total)
        ctx.edges, ctx.backend = edges, backend
        return u, kernels.key_term(q, q, k, beta, peak, total, edges)

    @staticmethod
    def backward(ctx: Any, grad_u: Tensor, grad_v: Tensor) -> tuple[Tensor | None, ...]:
        q, k, beta, peak, total = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: this gradient will itself be differentiated
            outputs = _attention_by_primitives(q, k, beta, ctx.edges, None, ctx.backend)
            inputs, needed = (q, k, beta), ctx.needs_input_grad[:3]
            return *differentiable_gradient(outputs, inputs, needed, (grad_u, grad_v)), None, None
        kernels = select_backend(ctx.backend, q)
        return *kernels.attention_gradient(q, k, beta, peak, total, grad_u, grad_v, ctx.edges), None, None


class _LogPartition(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, beta: Tensor, edges: SortedEdges, backend: str | None) -> Tensor:
        _, peak, total = select_backend(backend, q).query_term(q, k, beta, edges, only_partition=True)
        ctx.save_for_backward(q, k, beta, peak, total)
        ctx.edges, ctx.backend = edges, backend
        return peak + total.log()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, beta, peak, total = ctx.saved_tensors
        if torch.is_grad_enabled():
            outputs = segment_logsumexp(edge_scores(q, k, ctx.edges, ctx.backend) * beta, ctx.edges, ctx.backend)
            return *differentiable_gradient(outputs, (q, k, beta), ctx.needs_input_grad[:3], grad), None, None
        # The derivative with respect to beta K_B . Q_C is P_CB: the gradients are the terms of the update, weighted.
        kernels = select_backend(ctx.backend, q)
        weight = (grad * beta)[..., None]
        u = kernels.query_term(q, k, beta, ctx.edges)[0]
        grad_k = kernels.key_term(q, weight * q, k, beta, peak, total, ctx.edges)
        return weight * u, grad_k, (grad * (q * u).sum(-1)).sum(0), None, None


# -------------------------------------------------------------------------------------------------------- primitives


def edge_scores(q: Tensor, k: Tensor, edges: SortedEdges, backend: str | None = None) -> Tensor:
    """Inner products K_B . Q_C on the edges: q, k (N, H, Y) -> (E, H), in at least float32."""
    q, k = at_least_float32(q), at_least_float32(k)
    if select_backend(backend, q) is kernels_reference:
        return kernels_reference.edge_scores(q, k, edges)
    return _EdgeScores.apply(q, k, edges, backend)


def edge_aggregate(
    weight: Tensor, x: Tensor, edges: SortedEdges, to_keys: bool = False, backend: str | None = None
) -> Tensor:
    """Sum of weight (E, H) times x (N, H, Y) over edges, (N, H, Y) in the dtype of ``x``.

    By default the sum at each query over its keys, sum_B weight_CB x_B. With ``to_keys``, the sum at each key over the
    queries that attend to it, sum_C weight_CB x_C.
    """
    values = at_least_float32(x)
    weight = weight.to(values.dtype)
    if select_backend(backend, x) is kernels_reference:
        return kernels_reference.edge_aggregate(weight, values, edges, to_keys).to(x.dtype)
    return _EdgeAggregate.apply(weight, values, edges, to_keys, backend).to(x.dtype)


def segment_logsumexp(scores: Tensor, edges: SortedEdges, backend: str | None = None) -> Tensor:
    """Logsumexp of the scores of each query's edges: (E, H) -> (N, H); 0 for a query without keys."""
    values = at_least_float32(scores)
    if select_backend(backend, scores) is kernels_reference:
        return kernels_reference.segment_logsumexp(values, edges).to(scores.dtype)
    return _SegmentLogsumexp.apply(values, edges, backend).to(scores.dtype)


def segment_softmax(scores: Tensor, edges: SortedEdges, backend: str | None = None) -> Tensor:
    """Softmax of (E, H) scores over each query's edges."""
    return (scores - segment_logsumexp(scores, edges, backend)[edges.query]).exp()


class _EdgeScores(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, edges: SortedEdges, backend: str | None) -> Tensor:
        ctx.save_for_backward(q, k)
        ctx.edges, ctx.backend = edges, backend
        return select_backend(backend, q).edge_scores(q, k, edges)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k = ctx.saved_tensors
        grad_q = edge_aggregate(grad, k, ctx.edges, False, ctx.backend) if ctx.needs_input_grad[0] else None
        grad_k = edge_aggregate(grad, q, ctx.edges, True, ctx.backend) if ctx.needs_input_grad[1] else None
        return grad_q, grad_k, None, None


class _EdgeAggregate(Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor, edges: SortedEdges, to_keys: bool, backend: str | None) -> Tensor:
        ctx.save_for_backward(weight, x)
        ctx.edges, ctx.to_keys, ctx.backend = edges, to_keys, backend
        return select_backend(backend, x).edge_aggregate(weight, x, edges, to_keys)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight, x), grad_weight, grad_x = ctx.saved_tensors, None, None
        if ctx.needs_input_grad[0]:
            at_query, at_key = (x, grad) if ctx.to_keys else (grad, x)
            grad_weight = edge_scores(at_query, at_key, ctx.edges, ctx.backend)
        if ctx.needs_input_grad[1]:
            grad_x = edge_aggregate(weight, grad, ctx.edges, not ctx.to_keys, ctx.backend)
        return grad_weight, grad_x, None, None, None


class _SegmentLogsumexp(Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, edges: SortedEdges, backend: str | None) -> Tensor:
        result = select_backend(backend, scores).segment_logsumexp(scores, edges)
        ctx.save_for_backward(scores, result)
        ctx.edges = edges
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scores, result = ctx.saved_tensors
        return (scores - result[ctx.edges.query]).exp() * grad[ctx.edges.query], None, None
