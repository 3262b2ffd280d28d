"""Small graphs for the tests of graph tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from et.graphs.batch import GraphBatch, pack
from et.graphs.positional import with_eigenvectors


def random_graphs(
    sizes=(5, 9, 1, 7), features=3, edge_features=0, num_classes=2, level="graph", seed=0, density=0.4, k=4
) -> GraphBatch:
    """Undirected random graphs with eigenvectors; the third has a single node and no edges."""
    rng = np.random.default_rng(seed)
    edges, counts = [], []
    for size in sizes:
        joined = np.triu(rng.random((size, size)) < density, 1)
        edges.append(np.stack(np.nonzero(joined | joined.T)))
        counts.append(edges[-1].shape[1])
    edge_index = torch.from_numpy(np.concatenate(edges, axis=1))
    attributes = torch.from_numpy(rng.random((edge_index.shape[1], edge_features))) if edge_features else None
    labels = len(sizes) if level == "graph" else sum(sizes)
    graphs = pack(
        torch.tensor(sizes),
        torch.tensor(counts),
        torch.from_numpy(rng.standard_normal((sum(sizes), features))),
        edge_index,
        attributes,
        torch.arange(labels) % num_classes,
        level,
    )
    return with_eigenvectors(graphs, k)


@pytest.fixture
def graphs() -> GraphBatch:
    return random_graphs()


@pytest.fixture
def make_graphs() -> Callable[..., GraphBatch]:
    return random_graphs


@pytest.fixture
def make_tu() -> Callable[..., Path]:
    return write_tu


def write_tu(
    folder: Path, name="TOY", num_graphs=40, edge_labels=True, node_labels=True, attributes=False, seed=0
) -> Path:
    """A data set in TU format under folder/tu/NAME/raw: rings of 4 to 7 nodes (class 1) and paths (class 2)."""
    rng = np.random.default_rng(seed)
    raw = folder / "tu" / name / "raw"
    raw.mkdir(parents=True)
    rows = {
        "A": [],
        "graph_indicator": [],
        "graph_labels": [],
        "node_labels": [],
        "edge_labels": [],
        "node_attributes": [],
    }
    start = 1
    for graph in range(num_graphs):
        n = int(rng.integers(4, 8))
        pairs = [(i, i + 1) for i in range(n - 1)] + ([(n - 1, 0)] if graph % 2 == 0 else [])
        for a, b in [*pairs, *((b, a) for a, b in pairs)]:
            rows["A"].append(f"{start + a}, {start + b}")
            rows["edge_labels"].append(str((a + b) % 2))
        rows["graph_indicator"] += [str(graph + 1)] * n
        rows["graph_labels"].append(str(1 if graph % 2 == 0 else 2))
        rows["node_labels"] += [str(int(label)) for label in np.arange(n) % 3]
        rows["node_attributes"] += [f"{value:.3f}, {100 * value:.3f}" for value in rng.random(n)]
        start += n
    kept = ["A", "graph_indicator", "graph_labels"]
    kept += ["edge_labels"] * edge_labels + ["node_labels"] * node_labels + ["node_attributes"] * attributes
    for kind in kept:
        (raw / f"{name}_{kind}.txt").write_text("\n".join(rows[kind]) + "\n")
    return raw
