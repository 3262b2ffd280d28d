from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from et.anomaly.graph import check_graph, make_undirected, neighbourhoods
from et.utils.errors import UserError
from tests.anomaly.conftest import make_graph


def as_multiset(edge_index: torch.Tensor) -> list[tuple[int, int]]:
    return sorted(map(tuple, edge_index.T.tolist()))


def test_a_sound_graph_passes(graph):
    check_graph(graph)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.full((200,), 2)}, "labels 2; a label is 0"),
        ({"labels": 2 * (torch.arange(200) % 2) - 1}, r"no node with label 0 .*-1 means unlabelled: save benign"),
        ({"labels": torch.zeros(200, dtype=torch.int64)}, r"no node with label 1 \(anomalous\), only \[0\]"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"features \(N, F\) and labels \(N,\)"),
        ({"features": torch.full((200, 5), float("nan"))}, "NaN or infinite at 200 nodes, first at node 0"),
        ({"features": torch.zeros(200)}, r"features \(N, F\)"),
        ({"relations": {}}, "no edges"),
        ({"relations": {"a": torch.zeros(2, 0, dtype=torch.int64)}}, "relation 'a' .* has no edges: leave it out"),
        ({"relations": {"a": torch.tensor([[3, 5], [3, 5]])}}, "relation 'a' .* joins nodes to themselves only"),
        ({"relations": {"a": torch.tensor([[0, 200], [200, 0]])}}, "names nodes 0 .. 200, but the nodes are 0 .. 199"),
        ({"relations": {"a": torch.tensor([[0, -1], [-1, 0]])}}, "names nodes -1 .. 0"),
        ({"relations": {"a": torch.zeros(3, 2, dtype=torch.int64)}}, r"must be \(2, E\)"),
        ({"relations": {"a": torch.zeros(2, 2)}}, "integer node ids"),
    ],
)
def test_each_fault_is_named(graph, change, message):
    with pytest.raises(UserError, match=message):
        check_graph(replace(graph, **change))


def test_one_infinite_feature_is_found_at_its_node(graph):
    graph.features[17, 2] = float("inf")
    with pytest.raises(UserError, match="at 1 nodes, first at node 17"):
        check_graph(graph)


def test_hash_depends_on_content_alone(graph):
    same = replace(graph, name="another", relations={k: v.int() for k, v in reversed(graph.relations.items())})
    assert same.sha256() == graph.sha256()
    changed = graph.features.clone()
    changed[0, 0] += 1
    assert replace(graph, features=changed).sha256() != graph.sha256()


class TestOneWayEdges:
    lone = torch.tensor([[0, 1, 2, 3], [1, 0, 1, 2]])  # 2 -> 1 and 3 -> 2 lack their reverse

    def test_undirected_edges_stay_as_they_are(self, graph):
        for edge_index in graph.relations.values():
            assert make_undirected(edge_index, 200, "a", "error") is edge_index

    def test_error_names_an_edge_and_the_ways_out(self):
        with pytest.raises(UserError, match=r"2 of its 4 edges lack their reverse, for example 2 -> 1: .*mirror.*keep"):
            make_undirected(self.lone, 4, "a", "error")

    def test_unequal_repetition_is_an_error_too(self):
        with pytest.raises(UserError, match="some repeated"):
            make_undirected(torch.tensor([[0, 1, 0], [1, 0, 1]]), 2, "a", "error")

    def test_mirror_adds_each_reverse_once(self):
        mirrored = make_undirected(self.lone, 4, "a", "mirror")
        assert as_multiset(mirrored) == [(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)]

    def test_keep_leaves_a_directed_graph(self):
        assert make_undirected(self.lone, 4, "a", "keep") is self.lone

    def test_an_unknown_treatment_is_an_error(self):
        with pytest.raises(UserError, match="one_way_edges"):
            make_undirected(self.lone, 4, "a", "ignore")


class TestNeighbourhoods:
    @settings(max_examples=20, deadline=None)
    @given(seed=st.integers(0, 1000), merge=st.booleans(), self_loops=st.booleans(), repeated=st.booleans())
    def test_edges_are_those_asked_for(self, seed, merge, self_loops, repeated):
        graph = make_graph(num_nodes=30, seed=seed)
        found = neighbourhoods(graph, merge, self_loops, repeated)
        assert list(found) == (["merged"] if merge else ["first", "second"])
        given_edges = {name: as_multiset(edges) for name, edges in graph.relations.items()}
        if merge:
            given_edges = {"merged": sorted(given_edges["first"] + given_edges["second"])}
        for name, edge_index in found.items():
            expected = given_edges[name] if repeated else sorted(set(given_edges[name]))
            expected = sorted(expected + [(i, i) for i in range(30)] * self_loops)
            assert as_multiset(edge_index) == expected

    def test_loops_in_the_data_do_not_add_up(self):
        graph = replace(make_graph(num_nodes=30), relations={"a": torch.tensor([[0, 0, 1, 2], [0, 1, 0, 2]])})
        assert as_multiset(neighbourhoods(graph, True, False, True)["merged"]) == [(0, 1), (1, 0)]
        with_loops = neighbourhoods(graph, True, True, True)["merged"]
        assert np.array_equal(np.bincount(with_loops[0][with_loops[0] == with_loops[1]], minlength=30), np.ones(30))
