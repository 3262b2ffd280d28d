"""Beta wavelet graph neural network (Tang et al. 2022), homogeneous and heterogeneous."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import Tensor, nn

from et.anomaly.known_labels import with_label_counts
from et.core import EdgeTopology
from et.core.arguments import check_sizes
from et.core.sparse import edge_aggregate


def beta_wavelets(order: int) -> Tensor:
    """Coefficients of the wavelets W_{p,q}(w) = (w/2)^p (1 - w/2)^q / (2 B(p+1, q+1)), p + q = ``order``.

    Returns:
        (order + 1, order + 1): row p has the coefficients of w^0 .. w^order, w an eigenvalue of the normalised
        Laplacian.
    """
    rows = []
    for p in range(order + 1):
        q = order - p
        scale = math.factorial(order + 1) / (2 * math.factorial(p) * math.factorial(q))
        wavelet = scale * Polynomial([0, 0.5]) ** p * Polynomial([1, -0.5]) ** q
        rows.append(np.pad(wavelet.coef, (0, order + 1 - len(wavelet.coef))))
    return torch.tensor(np.stack(rows), dtype=torch.float32)


def laplacian_times(x: Tensor, topology: EdgeTopology) -> Tensor:
    """(I - D^-1/2 A D^-1/2) x, (n, F) -> (n, F); a node without edges keeps its value."""
    edges = topology.edges
    scale = edges.degree.clamp(min=1).to(torch.promote_types(x.dtype, torch.float32)).rsqrt().to(x.dtype)[:, None]
    ones = x.new_ones(edges.num_edges, 1)
    return x - scale * edge_aggregate(ones, (scale * x)[:, None], edges)[:, 0]


class BWGNN(nn.Module):
    """An MLP on each node, band-pass filters over the graph, and an MLP on their outputs.

    The filter outputs of several relations pass through the same linear layer and are summed before the last layer.

    Args:
        in_features: Number of node features F.
        hidden: Width.
        order: C of the wavelets; there are C + 1 of them.
        known_labels: Append the counts of neighbours with a known label (see :mod:`et.anomaly.known_labels`).
    """

    def __init__(self, in_features: int, hidden: int = 64, order: int = 2, known_labels: bool = False):
        super().__init__()
        check_sizes(in_features=in_features, hidden=hidden)
        check_sizes(minimum=0, order=order)
        self.takes_known_labels = known_labels
        in_features += 2 * known_labels
        self.encode = nn.Sequential(nn.Linear(in_features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.mix = nn.Linear((order + 1) * hidden, hidden)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(hidden, 1))
        self.register_buffer("wavelets", beta_wavelets(order))

    def reset_parameters(self) -> None:
        """Initialise all parameters and the wavelets again."""
        for layer in (*self.encode, self.mix, *self.head):
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        self.wavelets.copy_(beta_wavelets(len(self.wavelets) - 1))

    def forward(
        self,
        features: Tensor,
        topologies: Sequence[EdgeTopology],
        nodes: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Log-odds (n,) of features (n, F); ``nodes`` is ignored, ``known`` (n,) are visible labels."""
        x = self.encode(with_label_counts(features, topologies, known, self.takes_known_labels))
        return self.head(sum(self.mix(self.filtered(x, topology)) for topology in topologies))[:, 0]

    def filtered(self, x: Tensor, topology: EdgeTopology) -> Tensor:
        """Concatenated outputs of all wavelets, (n, (C + 1) hidden)."""
        powers = [x]
        for _ in range(len(self.wavelets) - 1):
            powers.append(laplacian_times(powers[-1], topology))
        return torch.einsum("pk,knf->npf", self.wavelets, torch.stack(powers)).flatten(1)
