"""A small graph with anomalies that both features and neighbours tell of, in memory and as a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from et.anomaly.graph import NodeGraph


def make_graph(num_nodes: int = 200, num_features: int = 5, share: float = 0.2, seed: int = 0) -> NodeGraph:
    """Anomalies (the last nodes) have shifted features and mostly each other as neighbours; two relations."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(num_nodes) >= num_nodes * (1 - share)).astype(np.int64)
    features = rng.normal(size=(num_nodes, num_features)) + labels[:, None]
    relations = {}
    for name, degree in (("first", 6), ("second", 3)):
        pairs = rng.integers(0, num_nodes, size=(2, degree * num_nodes))
        likely = rng.random(pairs.shape[1]) < np.where(labels[pairs[0]] == labels[pairs[1]], 1.0, 0.2)
        pairs = pairs[:, likely & (pairs[0] != pairs[1])]
        relations[name] = torch.from_numpy(np.concatenate([pairs, pairs[::-1]], axis=1))
    return NodeGraph("small", torch.from_numpy(features).float(), torch.from_numpy(labels), relations)


def save_npz(graph: NodeGraph, path: Path, **changes: np.ndarray) -> Path:
    """Write a graph in the project's own form; ``changes`` replace or add arrays."""
    arrays = {"features": graph.features.numpy(), "labels": graph.labels.numpy()}
    arrays |= {f"edge_index_{name}": edges.numpy() for name, edges in graph.relations.items()}
    np.savez(path, **(arrays | changes))
    return path


@pytest.fixture
def graph() -> NodeGraph:
    return make_graph()


@pytest.fixture
def graph_file(tmp_path: Path, graph: NodeGraph) -> Path:
    return save_npz(graph, tmp_path / "small.npz")


@pytest.fixture
def small_config(config: Callable, graph_file: Path) -> Callable:
    """Configuration of an experiment on the small graph, with tiny models and few epochs."""

    def build(experiment: str, *overrides: str):
        data = [
            "data=graph_file", f"data.path={graph_file}", "data.num_nodes=200", "data.num_features=5",
            "data.standardize=none",
            "trainer.accelerator=cpu",
        ]  # fmt: skip
        return config(f"experiment={experiment}", *data, *overrides)

    return build
