"""Who attends to whom: the two reductions over the keys that energy attention needs, for each kind of neighbourhood.

A topology answers two questions about queries q and keys k, both (..., N, H, Y), and inverse temperatures beta (H,):

* ``log_partition``: log sum over B of exp(score of key B for query C), (..., N, H): the inside of eq. 3, 13, 20 and 25;
* ``mix``: with c the derivative of sum_C log_partition / beta with respect to the products K_B . Q_C (for plain
  attention the softmax over the keys), the pair (sum_B c_CB K_B, sum_C c_CB Q_C), each (..., N, H, Y): the two terms of
  the update, conventional attention and the one that eq. 3 adds to it.

A query without any key contributes nothing to either.
"""

from __future__ import annotations

from copy import copy
from typing import Protocol

import torch
from torch import Tensor

from et.core import kernels_dense, sparse
from et.core.edges import SortedEdges


class Topology(Protocol):
    """What EnergyAttention asks of a neighbourhood (see the module's text)."""

    def log_partition(self, q: Tensor, k: Tensor, beta: Tensor) -> Tensor: ...

    def mix(self, q: Tensor, k: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]: ...


class AllPairs:
    """Every token is a key for every query; for itself only with ``self_attention`` (eq. 13), else not (eq. 3).

    ``keep_maps`` says whether the backward pass finds P stored or computes it again: see
    :func:`et.core.kernels_dense.attention`.
    """

    def __init__(self, self_attention: bool = False, keep_maps: bool | None = None):
        self.self_attention, self.keep_maps = self_attention, keep_maps

    def log_partition(self, q: Tensor, k: Tensor, beta: Tensor) -> Tensor:
        if q.shape[-3] == 1 and not self.self_attention:
            return q.sum(-1) * 0.0
        return kernels_dense.log_partition(q, k, beta, self.self_attention)

    def mix(self, q: Tensor, k: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        return self.mix_joined(torch.stack([q, k], dim=-3), beta).unbind(-3)

    def mix_joined(self, qk: Tensor, beta: Tensor) -> Tensor:
        """``mix`` of queries and keys that lie in one tensor, (..., N, 2, H, Y), into one like it."""
        return kernels_dense.attention(qk, beta, self.self_attention, self.keep_maps)


class EdgeTopology:
    """Attention along the edges of a graph (eq. 17-20): sparse, never N x N.

    Args:
        edge_index: (2, E) integers as in PyG; row 0 is the key B (source), row 1 the query C (target). A repeated edge
            counts as often as it stands there; self-loops are edges like any other.
        num_nodes: N; nodes without an incoming edge are queries without keys.
        backend: who computes, one of :data:`et.core.sparse.BACKENDS`; None for ET_SPARSE_BACKEND, or ``auto``.

    Raises:
        ValueError: edge_index has another shape, is not integer, or names a node outside 0 .. N-1.
    """

    def __init__(self, edge_index: Tensor, num_nodes: int, backend: str | None = None):
        self.edges = SortedEdges.from_edge_index(edge_index, num_nodes)
        self.backend = backend

    @property
    def num_nodes(self) -> int:
        return self.edges.num_nodes

    @property
    def num_edges(self) -> int:
        return self.edges.num_edges

    def to(self, device: torch.device | str) -> EdgeTopology:
        """The same neighbourhood with its index tensors on ``device``."""
        moved = copy(self)
        moved.edges = self.edges.to(device)
        return moved

    def log_partition(self, q: Tensor, k: Tensor, beta: Tensor) -> Tensor:
        return sparse.log_partition(q, k, beta, self.edges, self.backend)

    def mix(self, q: Tensor, k: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        return sparse.attention(q, k, beta, self.edges, backend=self.backend)
