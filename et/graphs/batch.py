"""Many graphs as one: nodes and edges laid one after the other, so that a batch is one big sparse graph."""

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
    """G graphs with N nodes and E edges altogether; a whole data set and a batch of it alike.

    Attributes:
        x: node features, (N, F) float; float32 in a batch.
        edge_index: (2, E) in numbers 0 .. N-1; row 0 the key (PyG's source), row 1 the query (target). The edges of a
            graph lie side by side, in the order of the graphs. int32 in a whole data set, int64 in a batch.
        edge_attr: edge features, (E, P) float, or None.
        y: (G,) for graph tasks, (N,) for node tasks; int64 classes or float targets.
        ptr: (G + 1,) int64, the first node of each graph, and N.
        edge_ptr: (G + 1,) int64, the first edge of each graph, and E.
        pe: Laplacian eigenvectors of the tokens, (N + G, k): for each graph its CLS token, then its nodes. Or None.
        level: whether ``y`` speaks of graphs or of nodes.
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
        """Nodes of each graph, (G,)."""
        return self.ptr.diff()

    @property
    def graph_of_node(self) -> Tensor:
        """(N,) int64: what PyG calls ``batch``."""
        if len(self) == 1:
            return torch.zeros(self.num_nodes, dtype=torch.int64, device=self.ptr.device)
        return torch.repeat_interleave(self.sizes, output_size=self.num_nodes)

    @property
    def cls_tokens(self) -> Tensor:
        """(G,) positions of the CLS tokens among all N + G tokens; each graph's stands in front of its nodes."""
        return self.ptr[:-1] + torch.arange(len(self), device=self.ptr.device)

    @property
    def node_tokens(self) -> Tensor:
        """(N,) positions of the nodes among all N + G tokens."""
        return torch.arange(self.num_nodes, device=self.ptr.device) + self.graph_of_node + 1

    def to(self, device: torch.device | str, non_blocking: bool = False) -> GraphBatch:
        return self._apply(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def _apply(self, function) -> GraphBatch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: function(v) for name, v in values.items() if isinstance(v, Tensor)})

    def select(self, graphs: Sequence[int] | Tensor) -> GraphBatch:
        """The graphs with these numbers, in this order, as a batch of their own."""
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
        """Drop the nodes beyond the first ``max_nodes`` of each graph with all their edges, as the released code does.

        Raises:
            UserError: the task is about nodes, so that none may go.
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
        """The same graphs with the nodes of each in a random order; features, edges and eigenvectors go with them."""
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
    """Graphs from concatenated arrays in which each graph numbers its nodes from 0.

    Node features are float32, or float64 where float32 would lose them (:func:`et.utils.features.as_features`).

    Raises:
        UserError: a graph has no nodes, an edge names a node that its graph does not have, or an array is too short or
            too long.
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
            "to leave them out, or mend the files they come from"
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
        edge_attr = edge_attr.float().reshape(edge_index.shape[1], -1)
    edge_index = edge_index.int() + ptr.int()[graph_of_edge]
    return GraphBatch(as_features(x), edge_index, edge_attr, y, ptr, edge_ptr, level=level)


def _pointers(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _ranges(ptr: Tensor, graphs: Tensor) -> tuple[Tensor, Tensor]:
    """All positions ptr[g] .. ptr[g + 1] - 1 for g in graphs, one after the other, and the pointers of the result."""
    counts = ptr[graphs + 1] - ptr[graphs]
    new = _pointers(counts)
    return torch.arange(int(new[-1])) + torch.repeat_interleave(ptr[graphs] - new[:-1], counts), new
