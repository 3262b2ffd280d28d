"""Partitioning message passing (PMP): neighbours of known and of unknown class are aggregated apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from et.anomaly.known_labels import MASKED
from et.core import EdgeTopology
from et.core.arguments import check_sizes
from et.core.sparse import edge_aggregate
from et.utils.errors import UserError


class PMPLayer(nn.Module):
    r"""A layer of `Zhuo et al., ICLR 2024 <https://openreview.net/forum?id=tEgrUrUuwA>`_.

    .. math::
        h_i' = W_{self} h_i + W_{fr,i} s_{fr,i} + W_{be,i} s_{be,i} + (a_i W_{fr,i} + (1 - a_i) W_{be,i}) s_{un,i}

    s are sums of h_j over the fraudulent, benign and unlabelled neighbours j of node i. The gate
    a_i = sigmoid(MLP(h_i)) mixes the two classes for neighbours of unknown class. The weights of a node are generated
    from it: W_{c,i} = W_c diag(G_c h_i + b_c).

    Partition, gate and root-specific weights are the paper's; the diagonal form of these weights is that of the
    authors' published settings. Three details are not theirs: b_c starts at 1, so that at first all nodes share W_c;
    ``aggregate="mean"``; and a self-loop is ignored, since W_{self} stands for it.

    Args:
        in_features: Width of h.
        out_features: Width of h'.
        aggregate: ``sum``, or ``mean``, which divides all three sums by the number of neighbours.
    """

    def __init__(self, in_features: int, out_features: int, aggregate: str = "sum"):
        super().__init__()
        self.aggregate = aggregate
        self.own = nn.Linear(in_features, out_features)
        self.classes = nn.ModuleList(nn.Linear(in_features, out_features, bias=False) for _ in range(2))  # be, fr
        self.generators = nn.ModuleList(nn.Linear(in_features, in_features) for _ in range(2))
        for generator in self.generators:
            nn.init.ones_(generator.bias)
        self.gate = nn.Sequential(nn.Linear(in_features, out_features), nn.ReLU(), nn.Linear(out_features, 1))

    def forward(self, x: Tensor, topologies: Sequence[EdgeTopology], known: Tensor) -> Tensor:
        """(n, F) -> (n, H); ``known`` (n,) are visible labels. Messages of several relations are added."""
        benign, fraud, unknown = sum(self.partition(x, topology, known) for topology in topologies).unbind(1)
        share = self.gate(x).sigmoid()  # (n, 1)
        out = self.own(x)
        for weight, generator, message in zip(
            self.classes,
            self.generators,
            (benign + (1 - share) * unknown, fraud + share * unknown),
            strict=True,
        ):
            out = out + weight(generator(x) * message)
        return out

    def partition(self, x: Tensor, topology: EdgeTopology, known: Tensor) -> Tensor:
        """Sums or means over benign, fraudulent and unlabelled neighbours: (n, F) -> (n, 3, F)."""
        edges = topology.edges
        between = (edges.key != edges.query).to(x.dtype)[:, None]  # (E, 1)
        kinds = torch.stack([known == 0, known == 1, known == MASKED], dim=1).to(x.dtype)  # (n, 3)
        by_class = (kinds[:, :, None] * x[:, None]).flatten(1)  # (n, 3 F)
        total = edge_aggregate(between, by_class[:, None], edges)[:, 0].unflatten(1, (3, -1))
        if self.aggregate == "sum":
            return total
        count = edge_aggregate(between, torch.ones_like(x[:, None, :1]), edges)  # (n, 1, 1)
        return total / count.clamp(min=1)


class PMP(nn.Module):
    """Layers of :class:`PMPLayer` with ReLU after each and a linear head.

    Two details differ from the authors' code. The messages of several relations are added; there they are concatenated.
    The label of a node that is predicted is masked, as for every network that reads known labels (see
    :mod:`et.anomaly.known_labels`): with two layers it would return to the node through a neighbour. The authors' code
    leaves all training labels visible, and its published settings have one layer.

    Args:
        in_features: F.
        hidden: Width.
        layers: Number of layers.
        dropout: Before every layer but the first.
        aggregate: ``sum`` or ``mean`` over the neighbours.
        known_labels: Partition neighbours by their visible labels. If False, every neighbour is unlabelled.

    Raises:
        UserError: There is no such aggregate.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int = 32,
        layers: int = 1,
        dropout: float = 0.0,
        aggregate: str = "sum",
        known_labels: bool = False,
    ):
        super().__init__()
        check_sizes(in_features=in_features, hidden=hidden, layers=layers)
        if aggregate not in ("sum", "mean"):
            raise UserError(f"model.aggregate must be sum or mean, not {aggregate!r}")
        self.takes_known_labels = known_labels
        widths = [in_features] + [hidden] * layers
        self.layers = nn.ModuleList(PMPLayer(before, after, aggregate) for before, after in pairwise(widths))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, 1)

    def forward(
        self,
        features: Tensor,
        topologies: Sequence[EdgeTopology],
        nodes: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """(n, F) -> log-odds (n,); node ids are ignored. If ``known`` (n,) is None, no label is visible."""
        if known is None or not self.takes_known_labels:
            known = torch.full((len(features),), MASKED, device=features.device)
        x = features
        for number, layer in enumerate(self.layers):
            x = layer(self.dropout(x) if number else x, topologies, known).relu()
        return self.head(x)[:, 0]
