"""Message-passing networks for nodes out of torch_geometric's layers: GCN, GraphSAGE, GIN and GAT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from et.anomaly.known_labels import with_label_counts
from et.core import EdgeTopology
from et.utils.errors import UserError

KINDS = ("gcn", "sage", "gin", "gat")


class NodeGNN(nn.Module):
    """Layers of one kind with ReLU after each and a linear head. The defaults are GADBench's, but for GraphSAGE's
    aggregator (``pool`` there).

    Args:
        in_features: F.
        kind: ``gcn`` (Kipf and Welling 2017), ``sage`` (Hamilton et al. 2017), ``gin`` (Xu et al. 2019) or ``gat``
            (Velickovic et al. 2018).
        hidden: Width; heads of ``gat`` share it.
        layers: Number of layers.
        dropout: Before every layer but the first.
        aggregate: Of ``sage`` and ``gin``: ``mean``, ``max`` or ``sum``.
        num_heads: Of ``gat``.
        known_labels: Append the counts of neighbours with a known label (see :mod:`et.anomaly.known_labels`).

    Raises:
        UserError: No such kind; ``hidden`` is no multiple of ``num_heads``.
    """

    def __init__(
        self,
        in_features: int,
        kind: str = "gcn",
        hidden: int = 32,
        layers: int = 2,
        dropout: float = 0.0,
        aggregate: str = "mean",
        num_heads: int = 4,
        known_labels: bool = False,
    ):
        super().__init__()
        if kind not in KINDS:
            raise UserError(f"model.kind must be {', '.join(KINDS)}, not {kind!r}")
        if kind == "gat" and hidden % num_heads:
            raise UserError(f"model.hidden {hidden} must be a multiple of model.num_heads {num_heads}")
        self.kind, self.takes_known_labels = kind, known_labels
        widths = [in_features + 2 * known_labels] + [hidden] * layers
        make = layer_maker(kind, aggregate, num_heads)
        self.layers = nn.ModuleList(make(before, after) for before, after in pairwise(widths))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, 1)

    def forward(
        self,
        features: Tensor,
        topologies: Sequence[EdgeTopology],
        nodes: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """(n, F) -> log-odds (n,); node ids are ignored; ``known`` (n,) are visible labels.

        Raises:
            UserError: There is more than one topology.
        """
        if len(topologies) != 1:
            raise UserError("this network runs on one merged graph: set data.merge=true")
        edges = self.edges(topologies[0], features)
        x = with_label_counts(features, topologies, known, self.takes_known_labels)
        for number, layer in enumerate(self.layers):
            x = layer(self.dropout(x) if number else x, edges).relu()
        return self.head(x)[:, 0]

    def edges(self, topology: EdgeTopology, features: Tensor) -> Tensor:
        """The graph as the layers take it: on a CPU the adjacency as a sparse matrix (query, key), else an edge index.

        The product of a sparse matrix needs no row per edge. ``gat`` weights each edge. On a GPU torch_geometric takes
        no maximum over a sparse matrix, and gathering is fast. Training needs products that only MKL has.
        """
        edges = topology.edges
        plain = features.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        plain = plain and torch.backends.mkl.is_available()
        if self.kind == "gat" or not plain or features.dtype not in (torch.float32, torch.float64):
            return torch.stack([edges.key.long(), edges.query.long()])
        ones = features.new_ones(edges.num_edges)
        return torch.sparse_csr_tensor(edges.row_start.long(), edges.key.long(), ones, (edges.num_nodes,) * 2)


def layer_maker(kind: str, aggregate: str, num_heads: int) -> Callable[[int, int], nn.Module]:
    """(width before, width after) -> a layer of torch_geometric."""
    from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv

    def make(before: int, after: int) -> nn.Module:
        if kind == "gcn":
            return GCNConv(before, after, add_self_loops=False)  # data.self_loops decides, as for every other method
        if kind == "sage":
            return SAGEConv(before, after, aggr=aggregate)
        if kind == "gat":
            return GATConv(before, after // num_heads, heads=num_heads, add_self_loops=False)
        return GINConv(nn.Linear(before, after), aggr=aggregate)

    return make
