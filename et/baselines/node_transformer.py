"""Graph transformer for nodes (Dwivedi and Bresson 2021), sparse: attention over a node's neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from et.anomaly.known_labels import with_label_counts
from et.core import EdgeTopology
from et.core.arguments import check_sizes
from et.core.sparse import edge_aggregate, edge_scores, segment_softmax
from et.utils.errors import UserError


class NodeTransformer(nn.Module):
    """Linear embedding, layers of attention along the edges and feed-forward networks, linear head.

    The Laplacian eigenvectors that the original adds to the nodes as positions are left out.

    Args:
        in_features: Number of node features F.
        dim: Token dimension D.
        num_heads: Number of heads, which share ``dim``.
        layers: Number of layers.
        dropout: Dropout probability after attention, feed-forward network and embedding.
        known_labels: Append the counts of neighbours with a known label (see :mod:`et.anomaly.known_labels`).
    """

    def __init__(
        self,
        in_features: int,
        dim: int = 64,
        num_heads: int = 4,
        layers: int = 2,
        dropout: float = 0.0,
        known_labels: bool = False,
    ):
        super().__init__()
        check_sizes(in_features=in_features, dim=dim, num_heads=num_heads, layers=layers)
        self.takes_known_labels = known_labels
        in_features += 2 * known_labels
        if dim % num_heads:
            raise ValueError(f"dim {dim} must be a multiple of num_heads {num_heads}")
        self.embed = nn.Sequential(nn.Linear(in_features, dim), nn.Dropout(dropout))
        self.layers = nn.ModuleList([TransformerLayer(dim, num_heads, dropout) for _ in range(layers)])
        self.head = nn.Linear(dim, 1)

    def forward(
        self,
        features: Tensor,
        topologies: Sequence[EdgeTopology],
        nodes: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Log-odds (n,) of features (n, F); ``nodes`` is ignored, ``known`` (n,) are visible labels.

        Raises:
            UserError: There is more than one topology.
        """
        if len(topologies) != 1:
            raise UserError("the graph transformer runs on one merged graph: set data.merge=true")
        x = self.embed(with_label_counts(features, topologies, known, self.takes_known_labels))
        for layer in self.layers:
            x = layer(x, topologies[0])
        return self.head(x)[:, 0]


class TransformerLayer(nn.Module):
    """Attention over the neighbours, then a feed-forward network, each with a residual followed by a layer norm."""

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, topology: EdgeTopology) -> Tensor:
        """Tokens after the layer, (n, D) -> (n, D)."""
        edges = topology.edges
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        scores = edge_scores(q / math.sqrt(q.shape[-1]), k, edges)
        attention = segment_softmax(scores, edges)
        collected = edge_aggregate(F.dropout(attention, self.dropout.p, self.training), v, edges).flatten(1)
        x = self.norm_attention(x + self.dropout(self.out(collected)))
        return self.norm_mlp(x + self.dropout(self.mlp(x)))
