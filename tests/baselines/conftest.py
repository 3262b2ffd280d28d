"""The small graph of the anomaly tests: baselines for nodes are tried on it too."""

from tests.anomaly.conftest import graph, graph_file, small_config

__all__ = ["graph", "graph_file", "small_config"]
