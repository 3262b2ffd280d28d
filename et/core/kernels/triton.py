"""GPU kernels in Triton: one program per row and head, no atomics, so results are reproducible.

The algorithm is that of the numba kernels: every pass recomputes the softmax P from q, k and two numbers per query.
Without a GPU they run in Triton's interpreter for tests (set TRITON_INTERPRET=1 before importing triton).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from et.core.csr import SortedEdges

P = ParamSpec("P")
R = TypeVar("R")
BLOCK = 16  # edges a program takes at a time


@triton.jit
def _rows(x, node, h, heads, width, mask, BLOCK_Y: tl.constexpr):
    """x[node, h] for a block of nodes: (BLOCK_E, BLOCK_Y), zero beyond the width and where the mask is false."""
    y = tl.arange(0, BLOCK_Y)
    place = (node.to(tl.int64)[:, None] * heads + h) * width + y[None, :]
    return tl.load(x + place, mask=mask[:, None] & (y[None, :] < width), other=0.0)


@triton.jit
def _row(x, row, h, heads, width, BLOCK_Y: tl.constexpr):
    """x[row, h]: (BLOCK_Y,), zero beyond the width."""
    y = tl.arange(0, BLOCK_Y)
    return tl.load(x + (row.to(tl.int64) * heads + h) * width + y, mask=y < width, other=0.0)


@triton.jit
def _store_row(x, row, h, heads, width, value, BLOCK_Y: tl.constexpr):
    y = tl.arange(0, BLOCK_Y)
    tl.store(x + (row.to(tl.int64) * heads + h) * width + y, value, mask=y < width)


@triton.jit
def _scores_kernel(q, k, query, key, out, edges, heads, width, BLOCK_E: tl.constexpr, BLOCK_Y: tl.constexpr):
    h = tl.program_id(1)
    e = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    mask = e < edges
    at_query = _rows(q, tl.load(query + e, mask=mask, other=0), h, heads, width, mask, BLOCK_Y)
    at_key = _rows(k, tl.load(key + e, mask=mask, other=0), h, heads, width, mask, BLOCK_Y)
    tl.store(out + e * heads + h, tl.sum(at_query * at_key, 1), mask=mask)


@triton.jit
def _aggregate_kernel(
    weight, x, start, source, position, out, heads, width,
    PERMUTED: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_Y: tl.constexpr,
):  # fmt: skip
    row, h = tl.program_id(0), tl.program_id(1)
    low, high = tl.load(start + row), tl.load(start + row + 1)
    total = tl.zeros((BLOCK_Y,), dtype=x.dtype.element_ty)
    for e0 in range(low, high, BLOCK_E):
        e = e0 + tl.arange(0, BLOCK_E)
        mask = e < high
        node = tl.load(source + e, mask=mask, other=0)
        if PERMUTED:
            e = tl.load(position + e, mask=mask, other=0).to(tl.int64)
        w = tl.load(weight + e * heads + h, mask=mask, other=0.0)
        total += tl.sum(w[:, None] * _rows(x, node, h, heads, width, mask, BLOCK_Y), 0)
    _store_row(out, row, h, heads, width, total, BLOCK_Y)


@triton.jit
def _logsumexp_kernel(scores, start, out, heads, BLOCK_E: tl.constexpr):
    row, h = tl.program_id(0), tl.program_id(1)
    low, high = tl.load(start + row), tl.load(start + row + 1)
    peak = tl.full((), float("-inf"), dtype=scores.dtype.element_ty)
    for e0 in range(low, high, BLOCK_E):
        e = e0 + tl.arange(0, BLOCK_E)
        peak = tl.maximum(peak, tl.max(tl.load(scores + e * heads + h, mask=e < high, other=float("-inf")), 0))
    peak = tl.where(peak == float("-inf"), 0.0, peak)
    total = tl.zeros((), dtype=scores.dtype.element_ty)
    for e0 in range(low, high, BLOCK_E):
        e = e0 + tl.arange(0, BLOCK_E)
        total += tl.sum(tl.exp(tl.load(scores + e * heads + h, mask=e < high, other=float("-inf")) - peak), 0)
    tl.store(out + row.to(tl.int64) * heads + h, peak + tl.log(tl.where(total > 0, total, 1.0)))


@triton.jit
def _query_term_kernel(
    q, k, beta, start, key, u, peak, total, heads, width,
    SUMS: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_Y: tl.constexpr,
):  # fmt: skip
    row, h = tl.program_id(0), tl.program_id(1)
    low, high = tl.load(start + row), tl.load(start + row + 1)
    at_query, b = _row(q, row, h, heads, width, BLOCK_Y), tl.load(beta + h)
    largest = tl.full((), float("-inf"), dtype=q.dtype.element_ty)
    norm = tl.zeros((), dtype=q.dtype.element_ty)
    sums = tl.zeros((BLOCK_Y,), dtype=q.dtype.element_ty)
    for e0 in range(low, high, BLOCK_E):
        e = e0 + tl.arange(0, BLOCK_E)
        mask = e < high
        at_key = _rows(k, tl.load(key + e, mask=mask, other=0), h, heads, width, mask, BLOCK_Y)
        scores = tl.where(mask, tl.sum(at_query[None, :] * at_key, 1) * b, float("-inf"))
        new = tl.maximum(largest, tl.max(scores, 0))
        p, shrink = tl.exp(scores - new), tl.exp(largest - new)
        norm = norm * shrink + tl.sum(p, 0)
        if SUMS:
            sums = sums * shrink + tl.sum(p[:, None] * at_key, 0)
        largest = new
    place = row.to(tl.int64) * heads + h
    norm = tl.where(high > low, norm, 1.0)
    tl.store(peak + place, tl.where(high > low, largest, 0.0))
    tl.store(total + place, norm)
    if SUMS:
        _store_row(u, row, h, heads, width, sums / norm, BLOCK_Y)


@triton.jit
def _softmax(raw, beta, peak, total, node, h, heads, mask):
    """P on a block of edges, from their inner products and the queries' softmax; 0 where the mask is false."""
    place = node.to(tl.int64) * heads + h
    largest = tl.load(peak + place, mask=mask, other=0.0)
    scores = tl.where(mask, raw * beta, float("-inf"))
    return tl.exp(scores - largest) / tl.load(total + place, mask=mask, other=1.0)


@triton.jit
def _key_term_kernel(
    q, values, k, beta, peak, total, start, query, v, heads, width,
    BLOCK_E: tl.constexpr, BLOCK_Y: tl.constexpr,
):  # fmt: skip
    row, h = tl.program_id(0), tl.program_id(1)
    low, high = tl.load(start + row), tl.load(start + row + 1)
    at_key, b = _row(k, row, h, heads, width, BLOCK_Y), tl.load(beta + h)
    sums = tl.zeros((BLOCK_Y,), dtype=q.dtype.element_ty)
    for e0 in range(low, high, BLOCK_E):
        e = e0 + tl.arange(0, BLOCK_E)
        mask = e < high
        node = tl.load(query + e, mask=mask, other=0)
        raw = tl.sum(_rows(q, node, h, heads, width, mask, BLOCK_Y) * at_key[None, :], 1)
        p = _softmax(raw, b, peak, total, node, h, heads, mask)
        sums += tl.sum(p[:, None] * _rows(values, node, h, heads, width, mask, BLOCK_Y), 0)
    _store_row(v, row, h, heads, width, sums, BLOCK_Y)


@triton.jit
def _query_gradient_kernel(
    q, k, beta, peak, total, gu, gv, start, key, gq, mean, gbeta, heads, width,
    BLOCK_E: tl.constexpr, BLOCK_Y: tl.constexpr,
):  # fmt: skip
    row, h = tl.program_id(0), tl.program_id(1)
    low, high = tl.load(start + row), tl.load(start + row + 1)
    at_query, b = _row(q, row, h, heads, width, BLOCK_Y), tl.load(beta + h)
    u = _row(gu, row, h, heads, width, BLOCK_Y)
    average, beta_sum = tl.zeros((), dtype=q.dtype.element_ty), tl.zeros((), dtype=q.dtype.element_ty)
    sums = tl.zeros((BLOCK_Y,), dtype=q.dtype.element_ty)
    for second in tl.static_range(2):  # first the mean slope of the query, then the sums that need it
        for e0 in range(low, high, BLOCK_E):
            e = e0 + tl.arange(0, BLOCK_E)
            mask = e < high
            node = tl.load(key + e, mask=mask, other=0)
            at_key = _rows(k, node, h, heads, width, mask, BLOCK_Y)
            v = _rows(gv, node, h, heads, width, mask, BLOCK_Y)
            raw = tl.sum(at_query[None, :] * at_key, 1)
            p = _softmax(raw, b, peak, total, tl.where(mask, row, 0), h, heads, mask)
            slope = tl.sum(u[None, :] * at_key + v * at_query[None, :], 1)
            if second == 0:
                average += tl.sum(p * slope, 0)
            else:
                change = p * (slope - average)
                beta_sum += tl.sum(change * raw, 0)
                sums += tl.sum(p[:, None] * v + (change * b)[:, None] * at_key, 0)
    tl.store(mean + row.to(tl.int64) * heads + h, average)
    tl.store(gbeta + row.to(tl.int64) * heads + h, beta_sum)
    _store_row(gq, row, h, heads, width, sums, BLOCK_Y)


@triton.jit
def _key_gradient_kernel(
    q, k, beta, peak, total, gu, gv, mean, start, query, gk, heads, width,
    BLOCK_E: tl.constexpr, BLOCK_Y: tl.constexpr,
):  # fmt: skip
    row, h = tl.program_id(0), tl.program_id(1)
    low, high = tl.load(start + row), tl.load(start + row + 1)
    at_key, b = _row(k, row, h, heads, width, BLOCK_Y), tl.load(beta + h)
    v = _row(gv, row, h, heads, width, BLOCK_Y)
    sums = tl.zeros((BLOCK_Y,), dtype=q.dtype.element_ty)
    for e0 in range(low, high, BLOCK_E):
        e = e0 + tl.arange(0, BLOCK_E)
        mask = e < high
        node = tl.load(query + e, mask=mask, other=0)
        at_query = _rows(q, node, h, heads, width, mask, BLOCK_Y)
        u = _rows(gu, node, h, heads, width, mask, BLOCK_Y)
        p = _softmax(tl.sum(at_query * at_key[None, :], 1), b, peak, total, node, h, heads, mask)
        slope = tl.sum(u * at_key[None, :] + v[None, :] * at_query, 1)
        average = tl.load(mean + node.to(tl.int64) * heads + h, mask=mask, other=0.0)
        change = b * p * (slope - average)
        sums += tl.sum(p[:, None] * u + change[:, None] * at_query, 0)
    _store_row(gk, row, h, heads, width, sums, BLOCK_Y)


def _on_its_device(function: Callable[P, R]) -> Callable[P, R]:
    """Run ``function`` with the device of its first argument as the current one, on which Triton launches."""

    @wraps(function)
    def launch(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0] if args else next(iter(kwargs.values()))
        with torch.cuda.device_of(first):
            return function(*args, **kwargs)

    return launch


def _blocks(width: int) -> dict[str, int]:
    return {"BLOCK_E": BLOCK, "BLOCK_Y": triton.next_power_of_2(max(1, width))}


@_on_its_device
def edge_scores(q: Tensor, k: Tensor, edges: SortedEdges) -> Tensor:
    """See :func:`et.core.kernels.reference.edge_scores`."""
    (_, heads, width), q, k = q.shape, q.contiguous(), k.contiguous()
    out = q.new_empty(edges.num_edges, heads)
    if out.numel():
        grid = (triton.cdiv(edges.num_edges, BLOCK), heads)
        _scores_kernel[grid](q, k, edges.query, edges.key, out, edges.num_edges, heads, width, **_blocks(width))
    return out


@_on_its_device
def edge_aggregate(weight: Tensor, x: Tensor, edges: SortedEdges, to_keys: bool = False) -> Tensor:
    """See :func:`et.core.kernels.reference.edge_aggregate`."""
    weight, x = weight.contiguous(), x.contiguous()
    out = torch.empty_like(x)
    index = (*edges.by_key, edges.key_position) if to_keys else (edges.row_start, edges.key, edges.key)
    if out.numel():
        _aggregate_kernel[x.shape[:2]](weight, x, *index, out, *x.shape[1:], PERMUTED=to_keys, **_blocks(x.shape[2]))
    return out


@_on_its_device
def segment_logsumexp(scores: Tensor, edges: SortedEdges) -> Tensor:
    """See :func:`et.core.kernels.reference.segment_logsumexp`."""
    out = scores.new_empty(edges.num_nodes, scores.shape[1])
    if out.numel():
        _logsumexp_kernel[tuple(out.shape)](scores.contiguous(), edges.row_start, out, out.shape[1], BLOCK_E=BLOCK)
    return out


@_on_its_device
def query_term(
    q: Tensor, k: Tensor, beta: Tensor, edges: SortedEdges, only_partition: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`et.core.kernels.numba.sparse.query_term`."""
    q, k, beta = q.contiguous(), k.contiguous(), beta.contiguous()
    u = torch.empty_like(q[:0] if only_partition else q)
    peak, total = (q.new_empty(q.shape[:2]) for _ in range(2))
    if q.numel():
        tensors = (q, k, beta, edges.row_start, edges.key, u, peak, total)
        _query_term_kernel[q.shape[:2]](*tensors, *q.shape[1:], SUMS=not only_partition, **_blocks(q.shape[2]))
    return u, peak, total


@_on_its_device
def key_term(
    q: Tensor, values: Tensor, k: Tensor, beta: Tensor, peak: Tensor, total: Tensor, edges: SortedEdges
) -> Tensor:
    """See :func:`et.core.kernels.numba.sparse.key_term`."""
    tensors = [x.contiguous() for x in (q, values, k, beta, peak, total)]
    v = torch.empty_like(tensors[2])
    if k.numel():
        _key_term_kernel[k.shape[:2]](*tensors, *edges.by_key, v, *k.shape[1:], **_blocks(k.shape[2]))
    return v


@_on_its_device
def attention_gradient(
    q: Tensor, k: Tensor, beta: Tensor, peak: Tensor, total: Tensor, grad_u: Tensor, grad_v: Tensor, edges: SortedEdges
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`et.core.kernels.numba.sparse.attention_gradient`."""
    tensors = [x.contiguous() for x in (q, k, beta, peak, total, grad_u, grad_v)]
    grad_q, grad_k = torch.empty_like(tensors[0]), torch.empty_like(tensors[1])
    mean, grad_beta = torch.empty_like(tensors[3]), torch.empty_like(tensors[3])
    if q.numel():
        shape, blocks = q.shape[1:], _blocks(q.shape[2])
        rows = (edges.row_start, edges.key, grad_q, mean, grad_beta)
        _query_gradient_kernel[q.shape[:2]](*tensors, *rows, *shape, **blocks)
        _key_gradient_kernel[q.shape[:2]](*tensors, mean, *edges.by_key, grad_k, *shape, **blocks)
    return grad_q, grad_k, grad_beta.sum(0)
