"""Tables 5 and 8, counted."""

from __future__ import annotations

import json

import pytest
import torch

from et.anomaly.graph import NodeGraph
from et.results import paper, statistics
from et.results.statistics import count, graph_set_statistics, node_graph_statistics, read_statistics


def test_an_edge_counts_once_whatever_its_relations():
    both_ways = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    again = torch.tensor([[1, 0, 2], [0, 1, 2]])  # 0-1 once more, and a loop at 2
    graph = NodeGraph("g", torch.zeros(4, 3), torch.tensor([0, 1, -1, 0]), {"a": both_ways, "b": again})
    assert node_graph_statistics(graph) == {"nodes": 4, "edges": 3, "anomaly": 0.25, "features": 3}


def test_averages_over_graphs():
    from et.graphs.batch import GraphBatch

    graphs = GraphBatch(
        torch.zeros(5, 2), torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]]), None, torch.tensor([0, 2]),
        torch.tensor([0, 2, 5]), torch.tensor([0, 2, 4]),
    )  # fmt: skip
    expected = {"graphs": 2, "avg_nodes": 2.5, "avg_edges": 1.0, "node_attr": 2, "classes": 2}
    assert graph_set_statistics(graphs) == expected


@pytest.mark.data
@pytest.mark.parametrize(
    "condition", ["tu_mutag", "tu_enzymes", "tu_proteins", "tu_dd", "tu_nci1", "tu_nci109", "tu_mutagenicity"]
)
def test_table_8_is_what_the_data_have(condition, data_root):
    table = paper.load(8)
    counted = count(8, condition, data_root)
    assert counted["dataset"]["variant"] == "exact"
    for metric in table.metrics:
        printed = table.cell(metric.name, condition, "counted").mean
        assert round(counted["metrics"][metric.key], metric.digits) == printed, metric.label


@pytest.mark.data
def test_the_command_counts_what_is_there_and_names_what_is_not(data_root, tmp_path, capsys, monkeypatch):
    def absent(number, condition, root):
        raise statistics.UserError("put the file there")

    real = statistics.count
    monkeypatch.setattr(statistics, "count", lambda n, c, r: (real if c == "tu_mutag" else absent)(n, c, r))
    assert statistics.main(["8", "--data", str(data_root), "--experiments", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "counted tu_mutag" in printed and "tu_nci109 is not here: put the file there" in printed
    assert set(read_statistics(tmp_path / "table08")) == {"tu_mutag"}
    monkeypatch.setattr(statistics, "count", absent)
    statistics.main(["8", "--data", str(data_root), "--experiments", str(tmp_path)])
    assert set(read_statistics(tmp_path / "table08")) == {"tu_mutag"}, "what was counted before stays"


def test_a_damaged_file_counts_as_none(tmp_path):
    (tmp_path / "statistics.json").write_text('{"tu_mutag": ')
    assert read_statistics(tmp_path) == {}
    (tmp_path / "statistics.json").write_text(json.dumps({"a": {}}))
    assert read_statistics(tmp_path) == {"a": {}}
