"""Layouts of a batch of graphs for attention: one sparse graph, or dense matrices padded to the largest graph.

Both layouts have the same interface, so the model does not depend on the choice. ``tokens`` are always passed and
returned as (N + G, D): for each graph its CLS token, then its nodes, in the order of the data.
"""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from et.core import Topology
from et.core.precision import at_least_float32
from et.core.sparse import SortedEdges, edge_aggregate
from et.core.weighted import (
    WeightedEdges,
    WeightedPairs,
    edge_mixed_products,
    edge_outer_convolution,
    outer_convolution,
)
from et.graphs.batch import GraphBatch


class Layout(Protocol):
    def place(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        """Arrange tokens (N + G, D) in the shape of the layout; ``padding`` (D,) fills the gaps, if there are any."""

    def tokens(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`place`: tokens (N + G, D)."""

    @property
    def cls(self) -> Tensor:
        """Indices of the CLS tokens along the layout's token axis."""

    def adjacency(self, x: Tensor, projection: nn.Linear) -> Tensor:
        """A' of eq. 24, the projection of the edge features: a value for each head, of pairs or of edges."""

    def convolution(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Conv3x3(X X^T) of eq. 24, in the shape of :meth:`adjacency`; ``kernel`` is (3, 3, H)."""

    def walk_convolution(self, x: Tensor, kernel: Tensor) -> Tensor:
        """sum over a, b of kernel[a, b] (P^a X)_C . (P^b X)_B, in the shape of :meth:`adjacency`.

        P is a step of a random walk: the mean over a node's neighbours. CLS and nodes without neighbours stay. This is
        the convolution of eq. 24 with the shifts along node indices replaced by a, b = 0, 1, 2 steps, so it does not
        depend on the order of the nodes.
        """

    def attention(self, ahat: Tensor, head_mix: Tensor | None) -> Topology:
        """Topology of attention weighted by ``ahat``."""

    def edge_errors(self, ahat: Tensor, decoder: nn.Linear) -> Tensor:
        """Squared error of edge features reconstructed from ``ahat`` by ``decoder`` (H -> P), for each graph, (G,)."""


def token_edges(batch: GraphBatch) -> tuple[Tensor, Tensor]:
    """Edges among the tokens, with the first row and column of A-tilde (eq. 23), and their features.

    Returns:
        (2, E + 2N + G) and (E + 2N + G, P). The edges of the graphs come first, then the edges between each CLS token
        and its nodes in both directions, then the self-loops of the CLS tokens. The features of the added edges are
        ones; if the data have no edge features, all features are ones and P = 1.
    """
    node, cls = batch.node_tokens, batch.cls_tokens
    cls_of_node = cls[batch.graph_of_node]
    added = torch.cat(
        [torch.stack([cls_of_node, node]), torch.stack([node, cls_of_node]), torch.stack([cls, cls])], dim=1
    )
    own = batch.edge_attr if batch.edge_attr is not None else batch.x.new_ones(batch.num_edges, 1)
    features = torch.cat([own, own.new_ones(added.shape[1], own.shape[1])])
    return torch.cat([node[batch.edge_index], added], dim=1), features


class SparseLayout:
    """The batch as one graph without edges between its graphs; no padding, no truncation.

    The result for a graph does not depend on the other graphs of the batch.
    """

    def __init__(self, batch: GraphBatch):
        self.batch = batch
        edge_index, features = token_edges(batch)
        self.edges = SortedEdges.from_edge_index(edge_index, batch.num_nodes + len(batch))
        self.features = features[self.edges.order]

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Masks of the first and the last token of each graph, each (N + G,) bool."""
        first = torch.zeros(self.edges.num_nodes, dtype=torch.bool, device=self.batch.x.device)
        first[self.batch.cls_tokens] = True
        return first, first.roll(-1)

    def place(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        return tokens

    def tokens(self, x: Tensor) -> Tensor:
        return x

    @property
    def cls(self) -> Tensor:
        return self.batch.cls_tokens

    def adjacency(self, x: Tensor, projection: nn.Linear) -> Tensor:
        """A' on the edges, (E + 2N + G, H). Pairs without an edge stay without one, even if the projection has a
        bias.
        """
        return projection(self.features.to(projection.weight.dtype))

    def convolution(self, x: Tensor, kernel: Tensor) -> Tensor:
        return edge_outer_convolution(x, kernel, self.edges, *self.ends)

    def walk_convolution(self, x: Tensor, kernel: Tensor) -> Tensor:
        x = at_least_float32(x)
        own = (self.edges.order < self.batch.num_edges).to(x.dtype)
        degree = own.new_zeros(len(x)).index_add(0, self.edges.query, own)
        weights = own / degree.clamp(min=1)[self.edges.query]
        steps = [x]
        for _ in range(len(kernel) - 1):
            moved = edge_aggregate(weights[:, None], steps[-1][:, None], self.edges)[:, 0]
            steps.append(torch.where(degree[:, None] > 0, moved, steps[-1]))
        return edge_mixed_products(torch.stack(steps, 1), kernel, self.edges)

    def attention(self, ahat: Tensor, head_mix: Tensor | None) -> WeightedEdges:
        return WeightedEdges(self.edges, ahat, head_mix=head_mix)

    def edge_errors(self, ahat: Tensor, decoder: nn.Linear) -> Tensor:
        """Mean over the edges of each graph, (G,); both sides are 0 elsewhere."""
        own = self.edges.order < self.batch.num_edges
        errors = (decoder(ahat[own]) - self.features[own]).square().mean(-1)
        return _mean_over_edges(errors, self.edges.order[own], self.batch)


class PaddedLayout:
    """Each graph of the batch as a dense matrix with the size of the largest graph: the reference, and the released
    form.

    Args:
        batch: The graphs, without repeated edges.
        sinks: If True, pad as the released code does: a padded token attends to every real token of its graph, and the
            CLS token attends to every padded token. A real node attends to no padded token unless the adjacency
            projection has a bias. The result for a graph then depends on the batch. If False, padded tokens are zero
            and are ignored, whatever the bias.
    """

    def __init__(self, batch: GraphBatch, sinks: bool):
        self.batch, self.sinks = batch, sinks
        sizes = batch.sizes + 1
        self.width = int(sizes.max())
        graph = torch.repeat_interleave(sizes, output_size=batch.num_nodes + len(batch))
        place_in_graph = torch.arange(len(graph), device=graph.device) - batch.cls_tokens[graph]
        self.position = graph * self.width + place_in_graph
        self.real = torch.arange(self.width, device=graph.device) < sizes[:, None]
        edge_index, features = token_edges(batch)
        key, query = edge_index
        self.edges = graph[query], place_in_graph[query], place_in_graph[key]
        dense = features.new_zeros(len(batch), self.width, self.width, features.shape[1])
        self.features = dense.index_put(self.edges, features)
        if sinks:
            # Row and column 0 of A-tilde are ones over the padded width; padded rows hold ones at all real columns.
            self.features[~self.real[:, :, None] & self.real[:, None]] = 1.0
            self.features[:, 0] = 1.0

    def place(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        x = tokens.new_zeros(len(self.batch) * self.width, tokens.shape[1])
        if self.sinks and padding is not None:
            x = x + padding
        return x.index_copy(0, self.position, tokens).view(len(self.batch), self.width, -1)

    def tokens(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1)[self.position]

    @property
    def cls(self) -> Tensor:
        return self.position[:1]  # the first token of each graph

    def adjacency(self, x: Tensor, projection: nn.Linear) -> Tensor:
        """A' of all pairs, (G, n, n, H), n the number of tokens of the largest graph. A bias in ``projection``
        reaches non-edges.
        """
        features = self.features.to(projection.weight.dtype).movedim(-1, 1)
        # Heads come first in memory, as the convolution and the attention have them.
        projected = (projection.weight @ features.flatten(2)).unflatten(2, features.shape[2:])
        if projection.bias is not None:
            projected = projected + projection.bias[:, None, None]
            if not self.sinks:
                projected = projected * (self.real[:, None, :, None] & self.real[:, None, None])
        return projected.movedim(1, -1)

    def convolution(self, x: Tensor, kernel: Tensor) -> Tensor:
        return outer_convolution(x, kernel)

    def walk_convolution(self, x: Tensor, kernel: Tensor) -> Tensor:
        x = at_least_float32(x)
        own = tuple(index[: self.batch.num_edges] for index in self.edges)
        walk = x.new_zeros(len(x), self.width, self.width).index_put(own, x.new_ones(()))
        degree = walk.sum(-1, keepdim=True)
        walk = torch.where(
            degree > 0, walk / degree.clamp(min=1), torch.eye(self.width, dtype=x.dtype, device=x.device)
        )
        steps = [x]
        for _ in range(len(kernel) - 1):
            steps.append(walk @ steps[-1])
        tokens = torch.stack(steps, 2)  # (G, n, 3, D)
        return torch.einsum("gcad,gbed->gcbae", tokens, tokens).flatten(-2) @ kernel.flatten(0, 1).to(x.dtype)

    def attention(self, ahat: Tensor, head_mix: Tensor | None) -> WeightedPairs:
        return WeightedPairs(ahat, head_mix)

    def edge_errors(self, ahat: Tensor, decoder: nn.Linear) -> Tensor:
        """Mean over the edges of each graph, (G,).

        With ``sinks``, as in the released code: the sum over all pairs, padding and CLS included, divided by the number
        of nonzero features.
        """
        if self.sinks:
            errors = (decoder(ahat) - self.features).square().flatten(1).sum(1)
            return errors / self.features.flatten(1).count_nonzero(1)
        own = tuple(index[: self.batch.num_edges] for index in self.edges)
        errors = (decoder(ahat[own]) - self.features[own]).square().mean(-1)
        return _mean_over_edges(errors, torch.arange(len(errors), device=errors.device), self.batch)


def _mean_over_edges(errors: Tensor, numbers: Tensor, batch: GraphBatch) -> Tensor:
    """Mean error of each graph's edges, (G,), of ``errors`` (E,) at the edge indices ``numbers``; 0 without edges."""
    graph = batch.graph_of_node[batch.edge_index[1]]
    counts = torch.bincount(graph, minlength=len(batch)).clamp(min=1)
    return errors.new_zeros(len(batch)).index_add(0, graph[numbers], errors) / counts


def make_layout(batch: GraphBatch, name: str, sinks: bool) -> Layout:
    """Build the layout ``sparse`` or ``padded``.

    Raises:
        ValueError: The name is unknown, or ``sinks`` is set for the sparse layout.
    """
    if name == "sparse":
        if sinks:
            raise ValueError("sink_padding needs layout='padded': the sparse layout has no padding")
        return SparseLayout(batch)
    if name == "padded":
        return PaddedLayout(batch, sinks)
    raise ValueError(f"layout must be 'sparse' or 'padded', not {name!r}")
