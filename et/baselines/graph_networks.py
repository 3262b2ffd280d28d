"""Baselines for graphs and their nodes: GIN, GAT and a graph transformer, from torch_geometric's layers.

All take a :class:`et.graphs.batch.GraphBatch` and return (G, num_outputs), or (N, num_outputs) with
``readout="nodes"``, like the Energy Transformer.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from et.core.arguments import check_sizes
from et.graphs.batch import GraphBatch
from et.graphs.positional import flip_signs


class BatchNorm(nn.BatchNorm1d):
    """Batch norm over the nodes of a batch, (N, D), that also accepts a batch of one node.

    One node has no variance. In training it is normalised by the running mean and variance, which are not updated.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class GIN(nn.Module):
    """Graph isomorphism network (Xu et al. 2019): sums over neighbours, and a readout from every layer's sum.

    Edge features are ignored.

    Args:
        in_features: Number of node features F.
        num_outputs: Number of classes, or 1 for a regression.
        readout: ``graph`` or ``nodes``.
        hidden: Width of every layer.
        num_layers: Number of message passing layers.
        dropout: Dropout probability of each layer's outputs, before they are summed.
    """

    def __init__(
        self,
        in_features: int,
        num_outputs: int,
        readout: Literal["graph", "nodes"] = "graph",
        hidden: int = 64,
        num_layers: int = 5,
        dropout: float = 0.5,
    ):
        super().__init__()
        check_sizes(in_features=in_features, num_outputs=num_outputs, hidden=hidden, num_layers=num_layers)
        from torch_geometric.nn import GINConv

        widths = [in_features] + [hidden] * num_layers
        self.layers = nn.ModuleList(GINConv(_mlp(width, hidden), train_eps=True) for width in widths[:-1])
        self.norms = nn.ModuleList(BatchNorm(hidden) for _ in range(num_layers))
        self.heads = nn.ModuleList(nn.Linear(width, num_outputs) for width in widths)
        self.readout, self.dropout = _known(readout), dropout

    def forward(self, batch: GraphBatch) -> Tensor:
        x, outputs = batch.x, self._read_out(0, batch.x, batch)
        for index, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True), start=1):
            x = F.relu(norm(layer(x, batch.edge_index)))
            outputs = outputs + self._read_out(index, x, batch)
        return outputs

    def _read_out(self, index: int, x: Tensor, batch: GraphBatch) -> Tensor:
        return F.dropout(self.heads[index](_pooled(x, batch, self.readout, "sum")), self.dropout, self.training)


class GAT(nn.Module):
    """Graph attention network (Velickovic et al. 2018) with residuals; the readout is the mean over the nodes.

    Args:
        in_features, edge_features: F and P'; 0 edge features if edges have none.
        num_outputs: Number of classes, or 1 for a regression.
        readout: ``graph`` or ``nodes``.
        hidden: Width, shared by the heads.
        num_heads, num_layers: Heads per layer, and number of layers.
        dropout: Dropout probability of features and of attention.
    """

    def __init__(
        self,
        in_features: int,
        edge_features: int,
        num_outputs: int,
        readout: Literal["graph", "nodes"] = "graph",
        hidden: int = 64,
        num_heads: int = 8,
        num_layers: int = 4,
        dropout: float = 0.5,
    ):
        super().__init__()
        check_sizes(in_features=in_features, num_outputs=num_outputs, num_layers=num_layers)
        check_sizes(minimum=0, edge_features=edge_features)
        check_heads(hidden, num_heads)
        from torch_geometric.nn import GATConv

        self.embed = nn.Linear(in_features, hidden)
        self.layers = nn.ModuleList(
            GATConv(hidden, hidden // num_heads, num_heads, dropout=dropout, edge_dim=edge_features or None)
            for _ in range(num_layers)
        )
        self.norms = nn.ModuleList(BatchNorm(hidden) for _ in range(num_layers))
        self.head = _mlp(hidden, hidden, num_outputs)
        self.readout, self.dropout = _known(readout), dropout

    def forward(self, batch: GraphBatch) -> Tensor:
        x = self.embed(batch.x)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            step = F.elu(norm(layer(x, batch.edge_index, batch.edge_attr)))
            x = x + F.dropout(step, self.dropout, self.training)
        return self.head(_pooled(x, batch, self.readout, "mean"))


class GraphTransformer(nn.Module):
    """Graph transformer (Dwivedi and Bresson 2021): dot-product attention along the edges, Laplacian positions.

    Args:
        in_features, edge_features: F and P'; 0 edge features if edges have none.
        num_outputs: Number of classes, or 1 for a regression.
        num_eigenvectors: Number of columns of the batch's ``pe``, whose signs are flipped at random in training. They
            belong to the graph with its CLS token, as in the Energy Transformer.
        readout: ``graph`` or ``nodes``.
        hidden: Width, shared by the heads.
        num_heads, num_layers: Heads per layer, and number of layers.
        dropout: Dropout probability after attention and feed-forward network.
    """

    def __init__(
        self,
        in_features: int,
        edge_features: int,
        num_outputs: int,
        num_eigenvectors: int,
        readout: Literal["graph", "nodes"] = "graph",
        hidden: int = 64,
        num_heads: int = 8,
        num_layers: int = 4,
        dropout: float = 0.1,
    ):
        super().__init__()
        check_sizes(in_features=in_features, num_outputs=num_outputs, num_layers=num_layers)
        check_sizes(minimum=0, edge_features=edge_features)
        check_sizes(num_eigenvectors=num_eigenvectors)
        check_heads(hidden, num_heads)
        from torch_geometric.nn import TransformerConv

        self.embed = nn.Linear(in_features, hidden)
        self.position = nn.Linear(num_eigenvectors, hidden)
        self.attentions = nn.ModuleList(
            TransformerConv(hidden, hidden // num_heads, num_heads, edge_dim=edge_features or None, root_weight=False)
            for _ in range(num_layers)
        )
        for attention in self.attentions:
            # torch_geometric makes this layer without root_weight too, and leaves it out: processes that share their
            # gradients (DDP) would wait for it.
            attention.lin_skip.requires_grad_(False)
        self.feed_forwards = nn.ModuleList(_mlp(hidden, 2 * hidden, hidden) for _ in range(num_layers))
        self.attention_norms = nn.ModuleList(BatchNorm(hidden) for _ in range(num_layers))
        self.feed_forward_norms = nn.ModuleList(BatchNorm(hidden) for _ in range(num_layers))
        self.head = _mlp(hidden, hidden, num_outputs)
        self.readout, self.dropout = _known(readout), dropout

    def forward(self, batch: GraphBatch) -> Tensor:
        pe = batch.pe[batch.node_tokens]
        if self.training:
            pe = flip_signs(pe, batch.sizes)
        x = self.embed(batch.x) + self.position(pe)
        for attention, first_norm, feed_forward, second_norm in zip(
            self.attentions, self.attention_norms, self.feed_forwards, self.feed_forward_norms, strict=True
        ):
            step = attention(x, batch.edge_index, batch.edge_attr)
            x = first_norm(x + F.dropout(step, self.dropout, self.training))
            x = second_norm(x + F.dropout(feed_forward(x), self.dropout, self.training))
        return self.head(_pooled(x, batch, self.readout, "mean"))


def check_heads(hidden: int, num_heads: int) -> None:
    """Raise ValueError unless ``hidden`` is a multiple of ``num_heads``."""
    check_sizes(hidden=hidden, num_heads=num_heads)
    if hidden % num_heads:
        raise ValueError(f"hidden {hidden} must be a multiple of num_heads {num_heads}")


def _known(readout: str) -> str:
    if readout not in ("graph", "nodes"):
        raise ValueError(f"readout must be 'graph' or 'nodes', not {readout!r}")
    return readout


def _pooled(x: Tensor, batch: GraphBatch, readout: str, reduce: str) -> Tensor:
    """Nodes (N, D) unchanged, or reduced to one vector per graph, (G, D)."""
    if readout == "nodes":
        return x
    from torch_geometric.utils import scatter

    return scatter(x, batch.graph_of_node, dim_size=len(batch), reduce=reduce)


def _mlp(inputs: int, hidden: int, outputs: int | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs or hidden))
