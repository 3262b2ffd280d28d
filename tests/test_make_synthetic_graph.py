"""The synthetic graph: what was asked for, the same every time, with a signal in features and neighbourhood."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts import make_synthetic_graph


def make(path: Path, *options: str) -> dict[str, np.ndarray]:
    make_synthetic_graph.main([str(path), "--nodes", "5000", "--edges", "40000", "--anomaly-ratio", "0.05", *options])
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    return {file.stem: np.load(file, mmap_mode="r") for file in path.iterdir()}


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(make_synthetic_graph, "BLOCK", 1536)


def test_sizes_are_exact_and_every_edge_stands_once(tmp_path, small_blocks):
    graph = make(tmp_path / "graph.npz")
    assert set(graph) == {"node_features", "node_labels", "edges"}
    assert graph["node_features"].shape == (5000, 10) and graph["node_features"].dtype == np.float32
    assert graph["node_labels"].shape == (5000,) and graph["node_labels"].sum() == 250
    edges = graph["edges"]
    assert edges.shape == (40000, 2) and edges.dtype == np.int32
    assert edges.min() >= 0 and edges.max() < 5000
    assert (edges[:, 0] < edges[:, 1]).all()
    assert len(np.unique(edges, axis=0)) == 40000


def test_degrees_have_a_heavy_tail(tmp_path):
    heavy = np.bincount(make(tmp_path / "heavy.npz")["edges"].ravel(), minlength=5000)
    even = np.bincount(make(tmp_path / "even.npz", "--tail", "0", "--affinity", "0")["edges"].ravel(), minlength=5000)
    assert heavy.max() > 20 * heavy.mean()
    assert even.max() < 3 * even.mean()


def test_anomalies_differ_in_features_and_neighbourhood(tmp_path):
    graph = make(tmp_path / "graph.npz")
    anomalous = graph["node_labels"] == 1
    means = graph["node_features"][anomalous].mean(0) - graph["node_features"][~anomalous].mean(0)
    assert (means[:5] > 0.15).all() and (np.abs(means[5:]) < 0.25).all()
    one, other = anomalous[graph["edges"]].T
    assert (one & other).sum() / (one | other).sum() > 3 * 0.05  # without affinity: about 0.03
    plain = make(tmp_path / "plain.npz", "--affinity", "0")
    one, other = (plain["node_labels"] == 1)[plain["edges"]].T
    assert (one & other).sum() / (one | other).sum() < 0.06


def test_same_arguments_give_the_same_graph_in_either_format(tmp_path, small_blocks):
    first, again = make(tmp_path / "a.npz"), make(tmp_path / "b.npz")
    folder, other = make(tmp_path / "folder"), make(tmp_path / "c.npz", "--seed", "1")
    for name, array in first.items():
        assert np.array_equal(array, again[name]) and np.array_equal(array, folder[name])
        assert not np.array_equal(array, other[name])
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert not list(tmp_path.rglob("*.partial"))
    assert np.array_equal(make(tmp_path / "folder", "--seed", "1")["edges"], other["edges"])  # written over


@pytest.mark.parametrize("options", [["--nodes", "1"], ["--edges", "99999999"], ["--tail", "1"], ["--affinity", "-1"]])
def test_impossible_graphs_are_refused(tmp_path, options):
    with pytest.raises(SystemExit, match=r"make_synthetic_graph\.py"):
        make(tmp_path / "graph.npz", *options)
    assert not list(tmp_path.iterdir())
