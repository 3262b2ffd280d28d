"""The benchmark of scoring at a tiny size: both forms compute the same, and their times are recorded."""

from __future__ import annotations

from scripts import bench_scoring
from scripts.make_synthetic_graph import main as make_graph


def test_both_forms_agree(tmp_path):
    folder = tmp_path / "graph"
    make_graph([str(folder), "--nodes", "300", "--edges", "2000"])
    found = bench_scoring.measure(folder, heads=2, width=70, rounds=1)
    assert (found["nodes"], found["edges"]) == (300, 4000)
    assert found["difference"] < 1e-5
    assert found["ratio"] == found["projected"][0] / found["gathered_once"][0]
