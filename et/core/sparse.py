"""Attention along edges: the differentiable operations, and the choice of the backend that computes them.

Backends: ``reference`` (plain gather and scatter), ``torch`` (the same in chunks of bounded memory, any device) and
``numba`` (CPU). ``auto`` takes the fastest that runs where the tensors are. The environment variable
ET_SPARSE_BACKEND sets it for a process, the argument ``backend`` for a call.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType
from typing import Any

from torch import Tensor
from torch.autograd import Function

from et.core.edges import SortedEdges
from et.core.precision import at_least_float32

__all__ = ["BACKENDS", "SortedEdges", "edge_aggregate", "edge_scores", "segment_logsumexp", "select_backend"]

BACKENDS = ("auto", "reference", "torch", "numba")


def select_backend(name: str | None, tensor: Tensor) -> ModuleType:
    """The module of kernels for ``tensor``'s device; ``None`` stands for ET_SPARSE_BACKEND, or ``auto``.

    Raises:
        ValueError: there is no such backend, or it cannot run here.
    """
    name = name or os.environ.get("ET_SPARSE_BACKEND", "auto")
    if name not in BACKENDS:
        raise ValueError(f"no sparse backend {name!r}: choose one of {', '.join(BACKENDS)}")
    on_cpu = tensor.device.type == "cpu"
    if name == "auto":
        name = "numba" if on_cpu and importlib.util.find_spec("numba") else "torch"
    if name == "numba" and not on_cpu:
        raise ValueError(f"the numba backend computes on the CPU, but the tensors are on {tensor.device}")
    try:
        return importlib.import_module(f"et.core.kernels_{name}")
    except ImportError as error:
        raise ValueError(f"sparse backend {name!r} needs a package that is not installed: {error}") from error


def edge_scores(q: Tensor, k: Tensor, edges: SortedEdges, backend: str | None = None) -> Tensor:
    """Inner products K_B . Q_C on the edges: q, k (N, H, Y) -> (E, H), in float32 or better."""
    return _EdgeScores.apply(at_least_float32(q), at_least_float32(k), edges, backend)


def edge_aggregate(
    weight: Tensor, x: Tensor, edges: SortedEdges, to_keys: bool = False, backend: str | None = None
) -> Tensor:
    """Sums over edges of weight (E, H) times x (N, H, Y), (N, H, Y) in x's dtype.

    By default what a query collects from its keys, sum_B weight_CB x_B; with ``to_keys`` what a key collects from the
    queries that attend to it, sum_C weight_CB x_C.
    """
    values = at_least_float32(x)
    return _EdgeAggregate.apply(weight.to(values.dtype), values, edges, to_keys, backend).to(x.dtype)


def segment_logsumexp(scores: Tensor, edges: SortedEdges, backend: str | None = None) -> Tensor:
    """log of the sum over each query's edges of exp(scores): (E, H) -> (N, H); 0 for a query without keys."""
    return _SegmentLogsumexp.apply(at_least_float32(scores), edges, backend).to(scores.dtype)


class _EdgeScores(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, edges: SortedEdges, backend: str | None) -> Tensor:
        ctx.save_for_backward(q, k)
        ctx.edges, ctx.backend = edges, backend
        return select_backend(backend, q).edge_scores(q, k, edges)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
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
    def backward(ctx: Any, grad: Tensor) -> tuple:
        weight, x = ctx.saved_tensors
        at_query, at_key = (x, grad) if ctx.to_keys else (grad, x)
        grad_weight = edge_scores(at_query, at_key, ctx.edges, ctx.backend) if ctx.needs_input_grad[0] else None
        grad_x = (
            edge_aggregate(weight, grad, ctx.edges, not ctx.to_keys, ctx.backend) if ctx.needs_input_grad[1] else None
        )
        return grad_weight, grad_x, None, None, None


class _SegmentLogsumexp(Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, edges: SortedEdges, backend: str | None) -> Tensor:
        result = select_backend(backend, scores).segment_logsumexp(scores, edges)
        ctx.save_for_backward(scores, result)
        ctx.edges = edges
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        scores, result = ctx.saved_tensors
        return (scores - result[ctx.edges.query]).exp() * grad[ctx.edges.query], None, None
