"""Batches of node anomaly detection: the whole graph, or subgraphs drawn from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from et.core import EdgeTopology
from et.core.sparse import SortedEdges
from et.training.sampler import sample_rng


@dataclass(frozen=True)
class NodeBatch:
    """A graph, or a subgraph of it, as the model and the loss take it.

    Attributes:
        features: Node features, (n, F) float32.
        labels: 0 benign, 1 anomalous, -1 unlabelled, (n,) int64.
        topologies: Neighbours of the nodes: one topology, or one per relation.
        train, val, test: Indices in the batch of the nodes of each part, (.,) int64.
        nodes: Node ids in the graph's file, (n,).
        anomaly_weight: omega of eq. 12 and 22: benign over anomalous nodes among all training nodes.
    """

    features: Tensor
    labels: Tensor
    topologies: tuple[EdgeTopology, ...]
    train: Tensor
    val: Tensor
    test: Tensor
    nodes: Tensor
    anomaly_weight: float

    def to(self, device: torch.device | str, **kwargs: Any) -> NodeBatch:
        """The batch on ``device``."""
        moved = {
            name: value.to(device, **kwargs) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **moved, topologies=tuple(topology.to(device) for topology in self.topologies))


class SubgraphSamples(Dataset):
    """Fresh subgraphs each epoch: the same share of training, validation and test nodes, and the edges among them.

    Validation and test nodes serve as neighbours only: the loss is over the training nodes. A sample depends on (seed,
    epoch, index), not on the process that draws it.

    Args:
        whole: The whole graph.
        ratio: Share of the nodes of each part that a subgraph has.
        seed: Seed of the draws.
        count: Number of subgraphs per epoch.
    """

    def __init__(self, whole: NodeBatch, ratio: float, seed: int, count: int = 1):
        self.whole, self.ratio, self.seed, self.count = whole, ratio, seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> NodeBatch:
        rng = sample_rng(self.seed, *epoch_and_index)
        parts = [self._draw(rng, part) for part in (self.whole.train, self.whole.val, self.whole.test)]
        return induced(self.whole, *parts)

    def _draw(self, rng: np.random.Generator, part: Tensor) -> Tensor:
        count = max(1, int(self.ratio * len(part)))
        return part[torch.from_numpy(rng.choice(len(part), count, replace=False)).to(part.device)]


def induced(whole: NodeBatch, train: Tensor, val: Tensor, test: Tensor) -> NodeBatch:
    """Subgraph of ``whole`` induced by some of the nodes of each part.

    Args:
        whole: The whole graph.
        train, val, test: Indices of the nodes in ``whole``, (.,). The subgraph has them in this order.
    """
    nodes = torch.cat([train, val, test])
    places = torch.arange(len(nodes)).split([len(train), len(val), len(test)])
    return replace(
        whole,
        features=whole.features[nodes],
        labels=whole.labels[nodes],
        topologies=tuple(induced_topology(topology.edges, nodes) for topology in whole.topologies),
        nodes=whole.nodes[nodes],
        **dict(zip(("train", "val", "test"), places, strict=True)),
    )


def disjoint_union(batches: list[NodeBatch]) -> NodeBatch:
    """Disjoint union of several subgraphs."""
    if len(batches) == 1:
        return batches[0]
    sizes = [len(batch.labels) for batch in batches]
    first = [sum(sizes[:number]) for number in range(len(sizes))]

    def union(relation: int) -> EdgeTopology:
        found = []
        for start, batch in zip(first, batches, strict=True):
            edges = batch.topologies[relation].edges
            found.append(torch.stack([edges.key.long(), edges.query.long()]) + start)
        return EdgeTopology(torch.cat(found, dim=1), sum(sizes))

    whole = {name: torch.cat([getattr(b, name) for b in batches]) for name in ("features", "labels", "nodes")}
    parts = {
        name: torch.cat([getattr(batch, name) + start for start, batch in zip(first, batches, strict=True)])
        for name in ("train", "val", "test")
    }
    topologies = tuple(union(relation) for relation in range(len(batches[0].topologies)))
    return replace(batches[0], **whole, **parts, topologies=topologies)


def induced_topology(edges: SortedEdges, nodes: Tensor) -> EdgeTopology:
    """Topology of the edges among some nodes. Only the edges of these nodes are read, so a small sample is cheap.

    Args:
        edges: Edges of the whole graph. Repeated edges are kept.
        nodes: Distinct node indices, (n,). They become 0 .. n - 1 in this order.
    """
    count = len(nodes)
    place = torch.full((edges.num_nodes,), -1, dtype=torch.int32, device=nodes.device)
    place[nodes] = torch.arange(count, dtype=torch.int32, device=nodes.device)
    first, degree = edges.row_start[nodes], edges.row_start[nodes + 1] - edges.row_start[nodes]
    query = torch.repeat_interleave(torch.arange(count, dtype=torch.int32, device=nodes.device), degree)
    within = torch.arange(len(query), device=nodes.device) - (degree.cumsum(0) - degree)[query]
    key = place[edges.key[first[query] + within]]
    return EdgeTopology(torch.stack([key, query])[:, key >= 0], count)
