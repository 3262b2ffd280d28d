"""Orders of a graph's edges on the CPU, compiled by numba on first use and cached on disk."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from et.core.kernels.numba.runtime import arrays, kernel


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
    row_start = key.new_zeros(num_nodes + 1, dtype=torch.int64)
    out_key, order = (key.new_empty(key.numel(), dtype=torch.int32) for _ in range(2))
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
