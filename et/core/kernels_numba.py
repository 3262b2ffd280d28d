"""CPU kernels, compiled by numba at their first call and cached on disk.

Every output row belongs to one thread and is summed in a fixed order, so results are the same from run to run and for
any number of threads. The kernels release the interpreter's lock and run in plain Python threads that live for one
call: no thread pool that a fork could break, and never more threads than torch uses.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from torch import Tensor

from et.core.edges import SortedEdges

# Sums may be reordered and fused; infinities and NaN keep their meaning.
FAST_MATH = {"reassoc", "contract", "nsz", "arcp"}
EDGES_PER_TASK = 1 << 15


def kernel(function: Callable) -> Callable:
    """Compile ``function`` without the interpreter's lock; cached, where there is a place that can be written to."""
    options = {"nogil": True, "fastmath": FAST_MATH, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the source's folder nor the user's cache folder is writable
        return numba.njit(**options)(function)


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
def _scores(q, k, row_start, key, out, low, high):
    _, heads, width = q.shape
    for c in range(low, high):
        for e in range(row_start[c], row_start[c + 1]):
            b = key[e]
            for h in range(heads):
                total = q.dtype.type(0)
                for y in range(width):
                    total += q[c, h, y] * k[b, h, y]
                out[e, h] = total


@kernel
def _aggregate(weight, x, start, source, out, low, high):
    _, heads, width = x.shape
    for target in range(low, high):
        for e in range(start[target], start[target + 1]):
            node = source[e]
            for h in range(heads):
                w = weight[e, h]
                for y in range(width):
                    out[target, h, y] += w * x[node, h, y]


@kernel
def _aggregate_permuted(weight, x, start, source, position, out, low, high):
    _, heads, width = x.shape
    for target in range(low, high):
        for e in range(start[target], start[target + 1]):
            node = source[e]
            for h in range(heads):
                w = weight[position[e], h]
                for y in range(width):
                    out[target, h, y] += w * x[node, h, y]


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
    if to_keys:
        index = arrays(*edges.by_key, edges.key_position)
        run(_aggregate_permuted, index[0], (*arrays(weight, x), *index, out.numpy()))
    else:
        index = arrays(edges.row_start, edges.key)
        run(_aggregate, index[0], (*arrays(weight, x), *index, out.numpy()))
    return out


def segment_logsumexp(scores: Tensor, edges: SortedEdges) -> Tensor:
    """See :func:`et.core.kernels_reference.segment_logsumexp`."""
    out = scores.new_zeros(edges.num_nodes, scores.shape[1])
    index = arrays(edges.row_start)
    run(_logsumexp, index[0], (*arrays(scores), *index, out.numpy()))
    return out
