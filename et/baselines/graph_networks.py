"""Baselines for whole graphs: GIN, GAT and a graph transformer, from torch_geometric's layers.

All take a :class:`et.graphs.batch.GraphBatch` and give (G, num_outputs), like the Energy Transformer.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from et.graphs.batch import GraphBatch
from et.graphs.positional import flip_signs


class GIN(nn.Module):
    """Graph isomorphism network (Xu et al. 2019): sums over neighbours, and a readout from every layer's sum.

    Args:
        in_features: F.
        num_outputs: classes.
        hidden: width of every layer.
        num_layers: layers of message passing.
        dropout: before each readout.
    """

    def __init__(self, in_features: int, num_outputs: int, hidden: int = 64, num_layers: int = 5, dropout: float = 0.5):
        super().__init__()
        from torch_geometric.nn import GINConv

        widths = [in_features] + [hidden] * num_layers
        self.layers = nn.ModuleList(GINConv(_mlp(width, hidden), train_eps=True) for width in widths[:-1])
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden) for _ in range(num_layers))
        self.heads = nn.ModuleList(nn.Linear(width, num_outputs) for width in widths)
        self.dropout = dropout

    def forward(self, batch: GraphBatch) -> Tensor:
        x, graph = batch.x, batch.graph_of_node
        outputs = self._read_out(0, x, graph, len(batch))
        for index, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True), start=1):
            x = F.relu(norm(layer(x, batch.edge_index)))
            outputs = outputs + self._read_out(index, x, graph, len(batch))
        return outputs

    def _read_out(self, index: int, x: Tensor, graph: Tensor, num_graphs: int) -> Tensor:
        from torch_geometric.nn import global_add_pool

        pooled = global_add_pool(x, graph, size=num_graphs)
        return F.dropout(self.heads[index](pooled), self.dropout, self.training)


class GAT(nn.Module):
    """Graph attention network (Velickovic et al. 2018) with residuals and the mean over the nodes as readout.

    Args:
        in_features, edge_features: F and P'; 0 edge features where edges have none.
        num_outputs: classes.
        hidden: width, shared by the heads.
        num_heads, num_layers: per layer, and of layers.
        dropout: of features and of attention.
    """

    def __init__(
        self,
        in_features: int,
        edge_features: int,
        num_outputs: int,
        hidden: int = 64,
        num_heads: int = 8,
        num_layers: int = 4,
        dropout: float = 0.5,
    ):
        super().__init__()
        from torch_geometric.nn import GATConv

        self.embed = nn.Linear(in_features, hidden)
        self.layers = nn.ModuleList(
            GATConv(hidden, hidden // num_heads, num_heads, dropout=dropout, edge_dim=edge_features or None)
            for _ in range(num_layers)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden) for _ in range(num_layers))
        self.head = _mlp(hidden, hidden, num_outputs)
        self.dropout = dropout

    def forward(self, batch: GraphBatch) -> Tensor:
        from torch_geometric.nn import global_mean_pool

        x = self.embed(batch.x)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            step = F.elu(norm(layer(x, batch.edge_index, batch.edge_attr)))
            x = x + F.dropout(step, self.dropout, self.training)
        return self.head(global_mean_pool(x, batch.graph_of_node, size=len(batch)))


class GraphTransformer(nn.Module):
    """Graph transformer (Dwivedi and Bresson 2021): dot-product attention along the edges, Laplacian positions.

    Args:
        in_features, edge_features: F and P'; 0 edge features where edges have none.
        num_outputs: classes.
        num_eigenvectors: columns of the batch's ``pe``, whose signs are flipped at random in training.
        hidden: width, shared by the heads.
        num_heads, num_layers: per layer, and of layers.
        dropout: after attention and feed-forward.
    """

    def __init__(
        self,
        in_features: int,
        edge_features: int,
        num_outputs: int,
        num_eigenvectors: int,
        hidden: int = 64,
        num_heads: int = 8,
        num_layers: int = 4,
        dropout: float = 0.1,
    ):
        super().__init__()
        from torch_geometric.nn import TransformerConv

        self.embed = nn.Linear(in_features, hidden)
        self.position = nn.Linear(num_eigenvectors, hidden)
        self.attentions = nn.ModuleList(
            TransformerConv(hidden, hidden // num_heads, num_heads, edge_dim=edge_features or None, root_weight=False)
            for _ in range(num_layers)
        )
        self.feed_forwards = nn.ModuleList(_mlp(hidden, 2 * hidden, hidden) for _ in range(num_layers))
        self.attention_norms = nn.ModuleList(nn.BatchNorm1d(hidden) for _ in range(num_layers))
        self.feed_forward_norms = nn.ModuleList(nn.BatchNorm1d(hidden) for _ in range(num_layers))
        self.head = _mlp(hidden, hidden, num_outputs)
        self.dropout = dropout

    def forward(self, batch: GraphBatch) -> Tensor:
        from torch_geometric.nn import global_mean_pool

        graph, pe = batch.graph_of_node, batch.pe[batch.node_tokens]
        if self.training:
            pe = flip_signs(pe, batch.sizes)
        x = self.embed(batch.x) + self.position(pe)
        for attention, first_norm, feed_forward, second_norm in zip(
            self.attentions, self.attention_norms, self.feed_forwards, self.feed_forward_norms, strict=True
        ):
            step = attention(x, batch.edge_index, batch.edge_attr)
            x = first_norm(x + F.dropout(step, self.dropout, self.training))
            x = second_norm(x + F.dropout(feed_forward(x), self.dropout, self.training))
        return self.head(global_mean_pool(x, graph, size=len(batch)))


def _mlp(inputs: int, hidden: int, outputs: int | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs or hidden))
