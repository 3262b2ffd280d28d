"""CPU kernels, compiled by numba at their first call and cached on disk.

Every output row belongs to one thread and is summed in a fixed order, so results are the same from run to run and for
any number of threads. The kernels release the interpreter's lock and run in plain Python threads that live for one
call: no thread pool that a fork could break, and never more threads than torch uses.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numba
import numpy as np
import torch
from torch import Tensor

from et.core.edges import SortedEdges

# Sums may be reordered and fused; infinities and NaN keep their meaning.
FAST_MATH = {"reassoc", "contract", "nsz", "arcp"}
EDGES_PER_TASK = 1 << 15
PART = 64  # edges that are summed before they are added to their row


def kernel(function: Callable, fastmath: set[str] | bool = FAST_MATH) -> Callable:
    """Compile ``function`` without the interpreter's lock; cached, where there is a place that can be written to."""
    options = {"nogil": True, "fastmath": fastmath, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the source's folder nor the user's cache folder is writable
        return numba.njit(**options)(function)


exact_kernel = partial(kernel, fastmath=False)


def run(compiled: Callable, row_start: np.ndarray, arguments: tuple, rows: tuple[int, int] | None = None) -> None:
    """Call ``compiled(*arguments, low, high)`` on all rows, in tasks of about equal numbers of edges."""
    first, last = rows or (0, len(row_start) - 1)
    edges = row_start[last] - row_start[first]
    threads = min(torch.get_num_threads(), int(edges // EDGES_PER_TASK))
    if threads <= 1:
        return compiled(*arguments, first, last)
    # Many more tasks than threads, handed out as threads become free: rows differ widely in their number of edges.
    tasks = int(min(edges // EDGES_PER_TASK, threads * 32))
    bounds = np.searchsorted(row_start[first : last + 1], row_start[first] + edges * np.arange(tasks + 1) // tasks)
    bounds = np.unique(np.concatenate(([0], bounds, [last - first]))) + first
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda low, high: compiled(*arguments, low, high), bounds[:-1].tolist(), bounds[1:].tolist()))


def arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)


# ---------------------------------------------------------------------------------------------------------- orders


@kernel
def _sort_edges(key, query, row_start, out_key, order):
    num_nodes = len(row_start) - 1
    column = np.zeros(num_nodes + 1, np.int64)
    for e in range(len(key)):
        column[key[e] + 1] += 1
        row_start[query[e] + 1] += 1
    for node in range(num_nodes):
        column[node + 1] += column[node]
        row_start[node + 1] += row_start[node]
    by_key = np.empty(len(key), np.int32)
    for e in range(len(key)):
        by_key[column[key[e]]] = e
        column[key[e]] += 1
    cursor = row_start[:-1].copy()
    for e in by_key:
        slot = cursor[query[e]]
        cursor[query[e]] += 1
        out_key[slot] = key[e]
        order[slot] = e


@kernel
def _transpose(row_start, key, start, out, positions):
    num_nodes = len(row_start) - 1
    for node in key:
        start[node + 1] += 1
    for node in range(num_nodes):
        start[node + 1] += start[node]
    cursor = start[:-1].copy()
    for query in range(num_nodes):
        for e in range(row_start[query], row_start[query + 1]):
            out[cursor[key[e]]] = e if positions else query
            cursor[key[e]] += 1


def sort_edges(key: Tensor, query: Tensor, num_nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Counting sort by (query, key, position): row pointers (N + 1,) int64, keys (E,) and positions (E,) int32."""
    row_start = torch.zeros(num_nodes + 1, dtype=torch.int64)
    out_key, order = (torch.empty(key.numel(), dtype=torch.int32) for _ in range(2))
    _sort_edges(*arrays(key, query), *arrays(row_start, out_key, order))
    return row_start, out_key, order


def queries_by_key(row_start: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Pointers (N + 1,) int64 and queries (E,) int32 of the edges sorted by key."""
    start, query = torch.zeros_like(row_start), torch.empty_like(key)
    _transpose(*arrays(row_start, key, start, query), False)
    return start, query


def positions_by_key(row_start: Tensor, key: Tensor) -> Tensor:
    """Positions (E,) int32, among the edges sorted by query, of the edges sorted by key."""
    position = torch.empty_like(key)
    _transpose(*arrays(row_start, key, torch.zeros_like(row_start), position), True)
    return position


# ------------------------------------------------------------------------------------------------------ primitives


@kernel
def _dot(x, y):
    """Inner product. A loop of its own, so that every kernel sums it in the same order and gets the same score."""
    total = x.dtype.type(0)
    for i in range(len(x)):
        total += x[i] * y[i]
    return total


@kernel
def _dots(x, y, v, w):
    """x . y + v . w"""
    total = x.dtype.type(0)
    for i in range(len(x)):
        total += x[i] * y[i] + v[i] * w[i]
    return total


@kernel
def _flush(part, out):
    """Add a partial sum to its row: summing few edges at a time keeps hubs of 10^5 edges exact in float32."""
    for i in range(len(part)):
        out[i] += part[i]
        part[i] = 0


@kernel
def _scores(q, k, row_start, key, out, low, high):
    for c in range(low, high):
        for e in range(row_start[c], row_start[c + 1]):
            for h in range(q.shape[1]):
                out[e, h] = _dot(q[c, h], k[key[e], h])


@kernel
def _aggregate(weight, x, start, source, position, out, low, high):
    _, heads, width = x.shape
    part = np.zeros((heads, width), x.dtype)
    for target in range(low, high):
        for e in range(start[target], start[target + 1]):
            node = source[e]
            at = position[e] if len(position) else e
            for h in range(heads):
                w = weight[at, h]
                for y in range(width):
                    part[h, y] += w * x[node, h, y]
            if e % PART == 0:
                _flush(part.ravel(), out[target].ravel())
        _flush(part.ravel(), out[target].ravel())


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
    """See :func:`et.core.kernels_reference.edge_scores`."""
    out = q.new_empty(edges.num_edges, q.shape[1])
    index = arrays(edges.row_start, edges.key)
    run(_scores, index[0], (*arrays(q, k), *index, out.numpy()))
    return out


def edge_aggregate(weight: Tensor, x: Tensor, edges: SortedEdges, to_keys: bool = False) -> Tensor:
    """See :func:`et.core.kernels_reference.edge_aggregate`."""
    out = torch.zeros(x.shape, dtype=x.dtype)
    index = (*edges.by_key, edges.key_position) if to_keys else (edges.row_start, edges.key, edges.key[:0])
    index = arrays(*index)
    run(_aggregate, index[0], (*arrays(weight, x), *index, out.numpy()))
    return out


def segment_logsumexp(scores: Tensor, edges: SortedEdges) -> Tensor:
    """See :func:`et.core.kernels_reference.segment_logsumexp`."""
    out = scores.new_zeros(edges.num_nodes, scores.shape[1])
    index = arrays(edges.row_start)
    run(_logsumexp, index[0], (*arrays(scores), *index, out.numpy()))
    return out


# --------------------------------------------------------------------------------------------------- fused attention
#
# The softmax P is never stored: each pass computes it again from q, k and two numbers a query, the largest score
# ``peak`` and ``total`` = sum exp(score - peak). Their logsumexp alone would not do: where scores are large it rounds,
# and P with it.


@exact_kernel
def _unnormalised(score, beta, peak):
    """exp(beta score - peak). Without fused products: a query's largest score must give exactly 1 in every kernel."""
    return np.exp(score * beta - peak)


@kernel
def _longest(start, low, high):
    """Edges of the largest row."""
    most = 0
    for row in range(low, high):
        most = max(most, start[row + 1] - start[row])
    return most


@kernel
def _query_term(q, k, beta, row_start, key, u, peak, total, first, low, high):
    _, heads, width = q.shape
    p, part = np.empty(_longest(row_start, low, high), q.dtype), np.zeros(width, q.dtype)
    for c in range(low, high):
        start, row = row_start[c], c - first
        degree = row_start[c + 1] - start
        for h in range(heads):
            largest = q.dtype.type(-np.inf) if degree else q.dtype.type(0)
            for j in range(degree):
                p[j] = _dot(q[row, h], k[key[start + j], h])
                largest = max(largest, p[j] * beta[h])
            norm = 0.0 if degree else 1.0
            for j in range(degree):
                p[j] = _unnormalised(p[j], beta[h], largest)
                norm += p[j]
            peak[row, h], total[row, h] = largest, norm
            if len(u) == 0:
                continue
            for j in range(degree):
                b, w = key[start + j], p[j] / total[row, h]
                for y in range(width):
                    part[y] += w * k[b, h, y]
                if j % PART == 0:
                    _flush(part, u[row, h])
            _flush(part, u[row, h])


@kernel
def _key_term(q, values, k, beta, peak, total, start, query, v, first, low, high):
    _, heads, width = q.shape
    p, part = np.empty(PART, q.dtype), np.zeros(width, q.dtype)
    for b in range(low, high):
        row = b - first
        for h in range(heads):
            for e in range(start[b], start[b + 1], PART):
                queries = query[e : min(e + PART, start[b + 1])]
                for j in range(len(queries)):
                    c = queries[j]
                    p[j] = _unnormalised(_dot(q[c, h], k[row, h]), beta[h], peak[c, h]) / total[c, h]
                for j in range(len(queries)):
                    c, w = queries[j], p[j]
                    for y in range(width):
                        part[y] += w * values[c, h, y]
                _flush(part, v[row, h])


@kernel
def _query_gradient(q, k, beta, peak, total, gu, gv, row_start, key, gq, mean, gbeta, low, high):
    _, heads, width = q.shape
    longest = _longest(row_start, low, high)
    scores, p, slope = np.empty(longest, q.dtype), np.empty(longest, q.dtype), np.empty(longest, q.dtype)
    part = np.zeros(width, q.dtype)
    for c in range(low, high):
        start = row_start[c]
        degree = row_start[c + 1] - start
        for h in range(heads):
            average = 0.0
            for j in range(degree):
                b = key[start + j]
                scores[j] = _dot(q[c, h], k[b, h])
                p[j] = _unnormalised(scores[j], beta[h], peak[c, h]) / total[c, h]
                slope[j] = _dots(gu[c, h], k[b, h], gv[b, h], q[c, h])
                average += p[j] * slope[j]
            mean[c, h] = average
            beta_sum = 0.0
            for j in range(degree):
                b, w = key[start + j], p[j]
                change = w * (slope[j] - mean[c, h])
                beta_sum += change * scores[j]
                change *= beta[h]
                for y in range(width):
                    part[y] += w * gv[b, h, y] + change * k[b, h, y]
                if j % PART == 0:
                    _flush(part, gq[c, h])
            _flush(part, gq[c, h])
            gbeta[c, h] = beta_sum


@kernel
def _key_gradient(q, k, beta, peak, total, gu, gv, mean, start, query, gk, low, high):
    _, heads, width = q.shape
    p, changes, part = np.empty(PART, q.dtype), np.empty(PART, q.dtype), np.zeros(width, q.dtype)
    for b in range(low, high):
        for h in range(heads):
            for e in range(start[b], start[b + 1], PART):
                queries = query[e : min(e + PART, start[b + 1])]
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
    q: Tensor, k: Tensor, beta: Tensor, edges: SortedEdges, first: int = 0, only_partition: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """sum_B P_CB K_B for the queries ``first .. first + len(q)``, with the softmax's peak and total.

    q (n, H, Y), k (N, H, Y), beta (H,) -> (n, H, Y), (n, H), (n, H); the first is empty with ``only_partition``.
    """
    u = q.new_zeros(0 if only_partition else len(q), *q.shape[1:])
    peak, total = (q.new_empty(q.shape[:2]) for _ in range(2))
    index = arrays(edges.row_start, edges.key)
    run(_query_term, index[0], (*arrays(q, k, beta), *index, *arrays(u, peak, total), first), (first, first + len(q)))
    return u, peak, total


def key_term(
    q: Tensor, values: Tensor, k: Tensor, beta: Tensor, peak: Tensor, total: Tensor, edges: SortedEdges, first: int = 0
) -> Tensor:
    """sum_C P_CB values_C for the keys ``first .. first + len(k)``: q, values (N, H, Y), k (n, H, Y) -> (n, H, Y)."""
    v = torch.zeros_like(k, memory_format=torch.contiguous_format)
    index = arrays(*edges.by_key)
    tensors = arrays(q, values, k, beta, peak, total)
    run(_key_term, index[0], (*tensors, *index, v.numpy(), first), (first, first + len(k)))
    return v


def attention_gradient(
    q: Tensor, k: Tensor, beta: Tensor, peak: Tensor, total: Tensor, grad_u: Tensor, grad_v: Tensor, edges: SortedEdges
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to q, k (N, H, Y) and beta (H,) from those of both terms, (N, H, Y)."""
    gq, gk = (torch.zeros_like(q, memory_format=torch.contiguous_format) for _ in range(2))
    mean, gbeta = (q.new_empty(q.shape[:2]) for _ in range(2))
    tensors = arrays(q, k, beta, peak, total, grad_u, grad_v)
    index = arrays(edges.row_start, edges.key)
    run(_query_gradient, index[0], (*tensors, *index, *arrays(gq, mean, gbeta)))
    index = arrays(*edges.by_key)
    run(_key_gradient, index[0], (*tensors, mean.numpy(), *index, gk.numpy()))
    return gq, gk, gbeta.double().sum(0).to(beta.dtype)
