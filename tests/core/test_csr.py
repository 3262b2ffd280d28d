"""Sorting of edges: both orders, with and without numba, and what is refused."""

from __future__ import annotations

import pytest
import torch

from et.core import EdgeTopology
from et.core.csr import SortedEdges
from tests.core.sparse_cases import GRAPHS, random_graph, symmetric_graph


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("with_numba", [True, False])
def test_edges_are_sorted_both_ways(name, with_numba, monkeypatch):
    edge_index, num_nodes = GRAPHS[name]
    if not with_numba:
        monkeypatch.setattr("et.core.csr.compiled_orders", lambda device: None)
    edges = SortedEdges.from_edge_index(edge_index, num_nodes)
    order = torch.argsort(edge_index[1] * num_nodes + edge_index[0], stable=True)
    assert torch.equal(edges.order.long(), order)
    assert torch.equal(edge_index[:, order], torch.stack([edges.key, edges.query]).long())
    assert torch.equal(edges.degree, torch.bincount(edge_index[1], minlength=num_nodes))
    start, query = edges.by_key
    assert torch.equal(query, edges.query[edges.key_position])
    assert torch.equal(start.diff(), torch.bincount(edge_index[0], minlength=num_nodes))
    assert edges.key[edges.key_position].diff().ge(0).all()


def test_symmetric_graphs_share_one_order_also_after_a_move():
    edges = SortedEdges.from_edge_index(symmetric_graph(30, 100), 30)
    assert edges.by_key[1] is edges.key
    moved = edges.to("meta")
    assert moved.by_key[1] is moved.key and moved.key.device.type == "meta"
    directed = SortedEdges.from_edge_index(random_graph(30, 100), 30)
    assert directed.by_key[1] is not directed.key
    assert directed.to("meta").by_key[1].device.type == "meta"


@pytest.mark.parametrize(
    ("edge_index", "message"),
    [
        (torch.zeros(3, 4, dtype=torch.int64), "must be"),
        (torch.zeros(4, dtype=torch.int64), "must be"),
        (torch.zeros(2, 4), "integers"),
        (torch.zeros(2, 4, dtype=torch.bool), "integers"),
        (torch.tensor([[0, 5], [0, 1]]), "names nodes 0 .. 5"),
        (torch.tensor([[0, -1], [0, 1]]), "names nodes -1 .. 1"),
    ],
)
def test_edges_that_are_none_raise(edge_index, message):
    with pytest.raises(ValueError, match=message):
        EdgeTopology(edge_index, 5)
    with pytest.raises(ValueError, match="32-bit"):
        SortedEdges.from_edge_index(torch.zeros(2, 1, dtype=torch.int64), 2**31)


def test_small_integer_types_are_taken():
    edge_index = random_graph(20, 50)
    wide, narrow = (SortedEdges.from_edge_index(edge_index.to(t), 20) for t in (torch.int64, torch.int32))
    assert torch.equal(wide.key, narrow.key) and torch.equal(wide.order, narrow.order)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint64])
def test_edges_of_any_whole_type_are_sorted_alike(dtype):
    edge_index = torch.randint(0, 100, (2, 400))
    expected, found = (SortedEdges.from_edge_index(e, 100) for e in (edge_index, edge_index.to(dtype)))
    for name in ("row_start", "key", "order", "query", "key_position"):
        assert torch.equal(getattr(expected, name), getattr(found, name))
