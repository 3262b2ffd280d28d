"""Batches of graphs: the nodes and edges of all graphs are concatenated into one large sparse graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from et.utils.errors import UserError
from et.utils.features import as_features


@dataclass(frozen=True)
class GraphBatch:
    """G graphs with N nodes and E edges in total. A whole data set and a batch of it have the same form.

    Attributes:
        x: Node features, (N, F) float; float32 in a batch.
        edge_index: Node indices, (2, E); row 0 is the key (PyG's source), row 1 the query (target). Edges are grouped
            by graph, in the order of the graphs. int32 in a whole data set, int64 in a batch.
        edge_attr: Edge features, (E, P) float, or None.
        y: Targets, (G,) for graph tasks, (N,) for node tasks; int64 classes or float regression targets.
        ptr: Index of the first node of each graph, then N, (G + 1,) int64.
        edge_ptr: Index of the first edge of each graph, then E, (G + 1,) int64.
        pe: Laplacian eigenvectors of the tokens, (N + G, k): for each graph its CLS token, then its nodes. None if not
            computed.
        level: ``graph`` or ``node``: what a target belongs to.
    """

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor | None
    y: Tensor
    ptr: Tensor
    edge_ptr: Tensor
    pe: Tensor | None = None
    level: Literal["graph", "node"] = "graph"

    def __len__(self) -> int:
        return len(self.ptr) - 1

    @property
    def num_nodes(self) -> int:
        return self.x.shape[0]

    @property
    def num_edges(self) -> int:
        return self.edge_index.shape[1]

    @property
    def sizes(self) -> Tensor:
        """Number of nodes of each graph, (G,)."""
        return self.ptr.diff()

    @property
    def graph_of_node(self) -> Tensor:
        """Graph index of each node, (N,) int64; PyG calls it ``batch``."""
        if len(self) == 1:
            return torch.zeros(self.num_nodes, dtype=torch.int64, device=self.ptr.device)
        return torch.repeat_interleave(self.sizes, output_size=self.num_nodes)

    @property
    def cls_tokens(self) -> Tensor:
        """Indices of the CLS tokens among all N + G tokens, (G,). The CLS token of a graph precedes its nodes."""
        return self.ptr[:-1] + torch.arange(len(self), device=self.ptr.device)

    @property
    def node_tokens(self) -> Tensor:
        """Indices of the nodes among all N + G tokens, (N,)."""
        return torch.arange(self.num_nodes, device=self.ptr.device) + self.graph_of_node + 1

    def to(self, device: torch.device | str, non_blocking: bool = False) -> GraphBatch:
        return self._apply(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def _apply(self, function) -> GraphBatch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: function(v) for name, v in values.items() if isinstance(v, Tensor)})

    def select(self, graphs: Sequence[int] | Tensor) -> GraphBatch:
        """Batch of the graphs with the given indices, in the given order."""
        graphs = torch.as_tensor(graphs, dtype=torch.long)
        nodes, ptr = _ranges(self.ptr, graphs)
        edges, edge_ptr = _ranges(self.edge_ptr, graphs)
        shift = torch.repeat_interleave(ptr[:-1] - self.ptr[graphs], edge_ptr.diff())
        tokens, _ = _ranges(self.ptr + torch.arange(len(self.ptr)), graphs)
        return GraphBatch(
            x=self.x[nodes],
            edge_index=self.edge_index[:, edges].long() + shift,
            edge_attr=None if self.edge_attr is None else self.edge_attr[edges],
            y=self.y[graphs] if self.level == "graph" else self.y[nodes],
            ptr=ptr,
            edge_ptr=edge_ptr,
            pe=None if self.pe is None else self.pe[tokens],
            level=self.level,
        )

    def truncate(self, max_nodes: int) -> GraphBatch:
        """Keep the first ``max_nodes`` nodes of each graph and the edges among them, as the released code does.

        Raises:
            UserError: Targets belong to nodes, which cannot be removed.
        """
        if int(self.sizes.max()) <= max_nodes:
            return self
        if self.level == "node":
            raise UserError(f"max_nodes={max_nodes} would drop nodes that have a label; set data.max_nodes=null")
        kept = torch.arange(self.num_nodes) - self.ptr[self.graph_of_node] < max_nodes
        number = torch.cumsum(kept, 0) - 1
        edge_kept = kept[self.edge_index].all(0)
        edge_graph = torch.repeat_interleave(self.edge_ptr.diff())[edge_kept]
        return GraphBatch(
            x=self.x[kept],
            edge_index=number[self.edge_index[:, edge_kept]].int(),
            edge_attr=None if self.edge_attr is None else self.edge_attr[edge_kept],
            y=self.y,
            ptr=_pointers(self.sizes.clamp(max=max_nodes)),
            edge_ptr=_pointers(torch.bincount(edge_graph, minlength=len(self))),
            level=self.level,
        )

    def permute_nodes(self, generator: torch.Generator) -> GraphBatch:
        """Copy with the nodes of each graph in random order; features, edges and eigenvectors are permuted alike."""
        keys = self.graph_of_node + torch.rand(self.num_nodes, generator=generator, dtype=torch.float64)
        order = torch.argsort(keys)
        number = torch.empty_like(order)
        number[order] = torch.arange(self.num_nodes)
        pe = self.pe
        if pe is not None:
            pe = pe.clone()
            pe[self.node_tokens] = self.pe[self.node_tokens[order]]
        y = self.y if self.level == "graph" else self.y[order]
        return replace(self, x=self.x[order], edge_index=number[self.edge_index], pe=pe, y=y)


def pack(
    sizes: Tensor,
    edge_counts: Tensor,
    x: Tensor,
    edge_index: Tensor,
    edge_attr: Tensor | None,
    y: Tensor,
    level: Literal["graph", "node"] = "graph",
) -> GraphBatch:
    """Build a batch from concatenated arrays in which the node indices of each graph start at 0.

    Node features become float32, or float64 if float32 would lose their variation
    (:func:`et.utils.features.as_features`).

    Args:
        sizes: Number of nodes of each graph, (G,).
        edge_counts: Number of edges of each graph, (G,).
        x: Node features, (N, F).
        edge_index: Edges, (2, E).
        edge_attr: Edge features, (E, P), or None.
        y: Targets, (G,) or (N,).
        level: ``graph`` or ``node``: what a target belongs to.

    Raises:
        UserError: A graph has no nodes, an edge has a node index outside its graph, or an array has the wrong length.
    """
    nodes, edges = int(sizes.sum()), int(edge_counts.sum())
    lengths = {"x": (len(x), nodes), "edge_index": (edge_index.shape[1], edges)}
    lengths["y"] = len(y), len(sizes) if level == "graph" else nodes
    if edge_attr is not None:
        lengths["edge_attr"] = len(edge_attr), edges
    for key, (found, wanted) in lengths.items():
        if found != wanted:
            raise UserError(f"{key} is of {found} where the graphs need {wanted}: the files it comes from are damaged")
    if int(sizes.min()) < 1:
        empty = (sizes < 1).nonzero()[:, 0]
        raise UserError(
            f"{len(empty)} of {len(sizes)} graphs have no nodes, first graph {int(empty[0])}: set data.drop_empty=true "
            "to leave them out, or correct the files they come from"
        )
    ptr, edge_ptr = _pointers(sizes), _pointers(edge_counts)
    graph_of_edge = torch.repeat_interleave(edge_counts)
    wrong = (edge_index < 0) | (edge_index >= sizes[graph_of_edge])
    if wrong.any():
        edge = int(wrong.any(0).nonzero()[0])
        graph = int(graph_of_edge[edge])
        raise UserError(
            f"edge {edge_index[:, edge].tolist()} of graph {graph} names a node outside 0 .. {int(sizes[graph]) - 1}"
        )
    if edge_attr is not None:
        edge_attr = edge_attr.float().flatten(1) if edge_attr.dim() > 1 else edge_attr.float()[:, None]
    edge_index = edge_index.int() + ptr.int()[graph_of_edge]
    return GraphBatch(as_features(x), edge_index, edge_attr, y, ptr, edge_ptr, level=level)


def _pointers(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _ranges(ptr: Tensor, graphs: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenate the ranges ptr[g] .. ptr[g + 1] - 1 of ``graphs``; returns the indices and the pointers of the
    result.
    """
    counts = ptr[graphs + 1] - ptr[graphs]
    new = _pointers(counts)
    return torch.arange(int(new[-1])) + torch.repeat_interleave(ptr[graphs] - new[:-1], counts), new
