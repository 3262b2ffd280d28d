"""Topologies: which tokens attend to which, and the two reductions over the keys that energy attention needs."""

from __future__ import annotations

from copy import copy
from typing import Protocol

import torch
from torch import Tensor

from et.core import sparse
from et.core.csr import SortedEdges
from et.core.kernels import dense as kernels_dense


class Topology(Protocol):
    """Interface that :class:`EnergyAttention` needs.

    N tokens, H heads of dimension Y. A query without keys contributes 0 to both reductions.
    """

    def log_partition(self, q: Tensor, k: Tensor, beta: Tensor) -> Tensor:
        """Logarithm of the sum over the keys B of exp(score of B for query C): the inside of eq. 3, 13, 20 and 25.

        Args:
            q, k: Queries and keys, (..., N, H, Y) each.
            beta: Inverse temperatures, (H,).

        Returns:
            (..., N, H).
        """
        ...

    def attend(self, q: Tensor, k: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms of the update: sum_B c_CB K_B for each query C, and sum_C c_CB Q_C for each key B.

        c is the derivative of sum_C log_partition / beta with respect to K_B . Q_C; in plain attention, the softmax
        over the keys. Arguments as of :meth:`log_partition`.

        Returns:
            Two tensors (..., N, H, Y).
        """
        ...


class AllPairs:
    """Every token is a key of every query.

    Args:
        self_attention: If True, a token is among its own keys (eq. 13), else not (eq. 3).
        store_attention: If True, attention matrices are stored for the backward pass; if False, computed again. If
            None, the smaller ones are stored. See :func:`et.core.kernels.dense.attention`.
    """

    def __init__(self, self_attention: bool = False, store_attention: bool | None = None):
        self.self_attention, self.store_attention = self_attention, store_attention

    def log_partition(self, q: Tensor, k: Tensor, beta: Tensor) -> Tensor:
        if q.shape[-3] == 1 and not self.self_attention:
            return q.sum(-1) * 0.0
        return kernels_dense.log_partition(q, k, beta, self.self_attention)

    def attend(self, q: Tensor, k: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        u, v = self.attend_packed(torch.stack([q, k], dim=-3), beta).unbind(-3)
        return u, v

    def attend_packed(self, qk: Tensor, beta: Tensor) -> Tensor:
        """:meth:`attend` of queries and keys packed in one tensor, (..., N, 2, H, Y), into one of the same shape."""
        return kernels_dense.attention(qk, beta, self.self_attention, self.store_attention)


class EdgeTopology:
    """Attention along the edges of a graph (eq. 17-20): sparse, never N x N.

    Args:
        edge_index: Edges as in PyG, (2, E) integers: row 0 is the key B (source), row 1 the query C (target). Repeated
            edges count with their multiplicity; self-loops are edges like any other.
        num_nodes: Number of nodes N. Nodes without an incoming edge are queries without keys.
        backend: Implementation, one of :data:`et.core.sparse.BACKENDS`. If None, that of the environment variable
            ET_SPARSE_BACKEND, or ``"auto"``.

    Raises:
        ValueError: ``edge_index`` has another shape, is not integer, or names a node outside 0 .. N-1.
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
        """Copy with the index tensors on ``device``."""
        moved = copy(self)
        moved.edges = self.edges.to(device)
        return moved

    def log_partition(self, q: Tensor, k: Tensor, beta: Tensor) -> Tensor:
        return sparse.log_partition(q, k, beta, self.edges, self.backend)

    def attend(self, q: Tensor, k: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        return sparse.attention(q, k, beta, self.edges, backend=self.backend)
