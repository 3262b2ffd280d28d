"""Edges of a graph, sorted once for all kernels: by query (CSR) and, on first use, by key (CSC)."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

INDEX_LIMIT = 2**31 - 1


class cached_property:
    """functools.cached_property without its lock, which torch.compile cannot trace (Python 3.12 has no lock)."""

    def __init__(self, function: Callable[[Any], Any]):
        self.function, self.name, self.__doc__ = function, function.__name__, function.__doc__

    def __get__(self, owner: Any, kind: type | None = None) -> Any:
        if owner is None:
            return self
        value = owner.__dict__[self.name] = self.function(owner)
        return value


class SortedEdges:
    """Edges sorted by query, then key, then position. The order of the original edges does not matter.

    All indices but the row pointers are int32 (torch indexes with them; scatter needs ``.long()``). A graph of E edges
    takes 4E bytes for ``key`` and 4E for ``order``; 4E for the queries by key, unless the graph is symmetric (then the
    two orders share their memory); 4E for ``query`` and ``key_position``, each only once used.

    Attributes:
        row_start: Row pointers, (N + 1,) int64: the edges of query C are ``row_start[C] .. row_start[C + 1]``.
        key: Node B whose key the edge offers (PyG's source), (E,) int32.
        order: Position of each sorted edge in the original edge_index, (E,) int32.
        num_nodes: Number of nodes N.
    """

    def __init__(self, row_start: Tensor, key: Tensor, order: Tensor, num_nodes: int):
        self.row_start, self.key, self.order, self.num_nodes = row_start, key, order, num_nodes

    @classmethod
    def from_edge_index(cls, edge_index: Tensor, num_nodes: int) -> SortedEdges:
        """Sort an edge_index; repeated edges are kept.

        Args:
            edge_index: (2, E) integers; row 0 the keys, row 1 the queries.
            num_nodes: Number of nodes N.

        Raises:
            ValueError: ``edge_index`` has another shape, is not integer, names a node outside 0 .. N-1, or is too
                large.
        """
        if edge_index.dtype not in (torch.int32, torch.int64) and is_integer(edge_index):
            edge_index = edge_index.long()  # torch indexes and compares with these two only
        check_edge_index(edge_index, num_nodes)
        key, query = edge_index[0], edge_index[1]
        if _has_no_values(edge_index):
            return cls._traced(key, query, num_nodes)
        compiled = compiled_orders(edge_index.device)
        if compiled is not None:
            row_start, key, order = compiled.sort_edges(key, query, num_nodes)
        else:
            _, order = torch.sort(query.long() * num_nodes + key, stable=True)
            key, row_start, order = key[order].int(), row_pointers(query, num_nodes), order.int()
        return cls(row_start, key, order, num_nodes)

    @classmethod
    def _traced(cls, key: Tensor, query: Tensor, num_nodes: int) -> SortedEdges:
        """:meth:`from_edge_index` by operations that ONNX and the meta device have: no stable sort, 64-bit indices."""
        key, query = key.long(), query.long()
        order = torch.argsort(query * num_nodes + key)
        count = torch.zeros(num_nodes, dtype=torch.int64, device=key.device).index_add(0, query, torch.ones_like(query))
        edges = cls(torch.cat([count[:1] * 0, count.cumsum(0)]), key[order], order, num_nodes)
        edges.__dict__["query"] = query[order]
        return edges

    @property
    def degree(self) -> Tensor:
        """Number of keys of each query, (N,) int64."""
        return self.row_start.diff()

    @property
    def has_edge(self) -> Tensor:
        """True for a node that is the query or the key of an edge, (N,) bool."""
        return (self.degree > 0).index_fill(0, self.key.long(), True)

    @property
    def num_edges(self) -> int:
        return self.key.numel()

    @property
    def device(self) -> torch.device:
        return self.key.device

    @cached_property
    def query(self) -> Tensor:
        """Node C whose query the edge serves (PyG's target), (E,) int32, ascending."""
        nodes = torch.arange(self.num_nodes, dtype=torch.int32, device=self.device)
        return nodes.repeat_interleave(self.degree, output_size=self.num_edges)

    @cached_property
    def by_key(self) -> tuple[Tensor, Tensor]:
        """Edges sorted by key: pointers, (N + 1,) int64, and the queries of each key, (E,) int32, ascending."""
        compiled = compiled_orders(self.device)
        if compiled is not None:
            start, query = compiled.queries_by_key(self.row_start, self.key)
        else:
            start, query = row_pointers(self.key, self.num_nodes), self.query[self.key_position]
        if torch.equal(start, self.row_start) and torch.equal(query, self.key):
            return self.row_start, self.key  # a symmetric graph: one copy serves both
        return start, query

    @cached_property
    def key_position(self) -> Tensor:
        """Position, among the edges sorted by query, of each edge sorted by key, (E,) int32."""
        compiled = compiled_orders(self.device)
        if compiled is not None:
            return compiled.positions_by_key(self.row_start, self.key)
        return torch.sort(self.key, stable=True)[1].int()

    def chunk(self, nodes: slice, by_key: bool = False) -> SortedEdges:
        """Edges of some queries, or with ``by_key`` of some keys, as rows 0, 1, ...; the other ends keep their numbers.

        A chunk is for kernels that compute one row after the other (``query_term``, ``key_term``).

        Args:
            nodes: Slice of the queries or keys, without a step.
        """
        start, other = self.by_key if by_key else (self.row_start, self.key)
        start = start[nodes.start : nodes.stop + 1]
        other = other[start[0] : start[-1]]
        rows = SortedEdges(start - start[0], other, other[:0], len(start) - 1)
        if by_key:
            rows.__dict__["by_key"] = rows.row_start, other
            rows.__dict__["query"], rows.key = other, rows.query
        return rows

    def to(self, device: torch.device | str) -> SortedEdges:
        """Copy on ``device``, with the orders computed so far."""
        moved = type(self)(self.row_start.to(device), self.key.to(device), self.order.to(device), self.num_nodes)
        for name in ("query", "key_position"):
            if name in self.__dict__:
                moved.__dict__[name] = self.__dict__[name].to(device)
        if "by_key" in self.__dict__:
            shared = self.by_key[1] is self.key
            moved.__dict__["by_key"] = (
                (moved.row_start, moved.key) if shared else tuple(part.to(device) for part in self.by_key)
            )
        return moved


def check_edge_index(edge_index: Tensor, num_nodes: int) -> None:
    """Raise ValueError unless ``edge_index`` is (2, E), integer and within 0 .. num_nodes - 1.

    Under torch.compile or export, and on the meta device, only shape and dtype are checked.
    """
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"edge_index must be (2, E), row 0 keys and row 1 queries; got {tuple(edge_index.shape)}")
    if not is_integer(edge_index):
        raise ValueError(f"edge_index must hold integers; got {edge_index.dtype}")
    if _has_no_values(edge_index):
        return
    if max(edge_index.shape[1], num_nodes) > INDEX_LIMIT:
        raise ValueError(f"at most {INDEX_LIMIT:,} nodes and edges fit the 32-bit indices; take the graph in blocks")
    if edge_index.numel() and (int(edge_index.min()) < 0 or int(edge_index.max()) >= num_nodes):
        low, high = int(edge_index.min()), int(edge_index.max())
        raise ValueError(f"edge_index names nodes {low} .. {high}, but the graph has nodes 0 .. {num_nodes - 1}")


def is_integer(values: Tensor) -> bool:
    """True if ``values`` have an integer type, signed or unsigned."""
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def _has_no_values(tensor: Tensor) -> bool:
    """True if only shapes are known: under torch.compile or export, and on the meta device."""
    return torch.compiler.is_compiling() or tensor.is_meta


def row_pointers(node: Tensor, num_nodes: int) -> Tensor:
    """Start of each node's range in the sorted ``node`` (E,), and the end of the last: (N + 1,) int64."""
    start = torch.zeros(num_nodes + 1, dtype=torch.int64, device=node.device)
    start[1:] = torch.bincount(node, minlength=num_nodes).cumsum(0)
    return start


def compiled_orders(device: torch.device) -> ModuleType | None:
    """Module that sorts edges on ``device`` in compiled code; None unless on the CPU with numba, not traced."""
    if device.type != "cpu" or torch.compiler.is_compiling():
        return None
    try:
        from et.core.kernels.numba import orders as numba_orders
    except ImportError:
        return None
    return numba_orders
