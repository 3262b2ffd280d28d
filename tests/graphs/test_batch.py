"""Graphs laid one after the other: selection, truncation, node orders, bad edges."""

import pytest
import torch

from et.graphs.batch import pack
from et.utils.errors import UserError


def local_edges(graphs, number):
    start, stop = graphs.edge_ptr[number], graphs.edge_ptr[number + 1]
    return graphs.edge_index[:, start:stop].long() - graphs.ptr[number]


@pytest.mark.parametrize("level", ["graph", "node"])
def test_select_takes_whole_graphs_in_the_order_asked_for(make_graphs, level):
    graphs = make_graphs(edge_features=2, level=level)
    chosen = graphs.select([3, 0, 2])
    assert chosen.sizes.tolist() == [7, 5, 1]
    for new, old in enumerate([3, 0, 2]):
        nodes_new = slice(chosen.ptr[new], chosen.ptr[new + 1])
        nodes_old = slice(graphs.ptr[old], graphs.ptr[old + 1])
        assert torch.equal(chosen.x[nodes_new], graphs.x[nodes_old])
        assert torch.equal(local_edges(chosen, new), local_edges(graphs, old))
        assert torch.equal(
            chosen.edge_attr[chosen.edge_ptr[new] : chosen.edge_ptr[new + 1]],
            graphs.edge_attr[graphs.edge_ptr[old] : graphs.edge_ptr[old + 1]],
        )
        tokens_new = slice(chosen.ptr[new] + new, chosen.ptr[new + 1] + new + 1)
        tokens_old = slice(graphs.ptr[old] + old, graphs.ptr[old + 1] + old + 1)
        assert torch.equal(chosen.pe[tokens_new], graphs.pe[tokens_old])
        if level == "node":
            assert torch.equal(chosen.y[nodes_new], graphs.y[nodes_old])
        else:
            assert chosen.y[new] == graphs.y[old]


def test_tokens_are_cls_then_nodes_of_each_graph(graphs):
    assert graphs.cls_tokens.tolist() == [0, 6, 16, 18]
    everything = torch.cat([graphs.cls_tokens, graphs.node_tokens])
    assert torch.equal(everything.sort().values, torch.arange(graphs.num_nodes + len(graphs)))
    assert graphs.graph_of_node.tolist() == [0] * 5 + [1] * 9 + [2] + [3] * 7


def test_truncation_keeps_the_first_nodes_and_the_edges_among_them(make_graphs):
    graphs = make_graphs(edge_features=1)
    cut = graphs.truncate(6)
    assert cut.sizes.tolist() == [5, 6, 1, 6]
    for number in range(len(graphs)):
        old, new = local_edges(graphs, number), local_edges(cut, number)
        kept = (old < 6).all(0)
        assert torch.equal(new, old[:, kept])
        assert torch.equal(
            cut.edge_attr[cut.edge_ptr[number] : cut.edge_ptr[number + 1]],
            graphs.edge_attr[graphs.edge_ptr[number] : graphs.edge_ptr[number + 1]][kept],
        )
    assert graphs.truncate(9) is graphs


def test_truncation_refuses_to_drop_labelled_nodes(make_graphs):
    with pytest.raises(UserError, match="max_nodes"):
        make_graphs(level="node").truncate(3)


def test_permuted_nodes_are_the_same_graphs(make_graphs):
    graphs = make_graphs(level="node", num_classes=22)
    graphs = graphs.__class__(**{**graphs.__dict__, "x": torch.arange(22.0)[:, None]})
    permuted = graphs.permute_nodes(torch.Generator().manual_seed(1))
    old = permuted.x[:, 0].long()  # the number each node had
    assert not torch.equal(old, torch.arange(22))
    assert torch.equal(graphs.graph_of_node[old], graphs.graph_of_node)
    assert torch.equal(permuted.y, graphs.y[old])
    assert torch.equal(permuted.pe[permuted.node_tokens], graphs.pe[graphs.node_tokens[old]])
    assert torch.equal(permuted.pe[permuted.cls_tokens], graphs.pe[graphs.cls_tokens])
    edges = {tuple(e) for e in graphs.edge_index.T.tolist()}
    assert {tuple(e) for e in old[permuted.edge_index].T.tolist()} == edges


def test_empty_graphs_and_edges_that_leave_their_graph_are_refused():
    x, y = torch.zeros(3, 1), torch.zeros(2, dtype=torch.long)
    none = torch.zeros(2, 0, dtype=torch.long)
    with pytest.raises(UserError, match="1 of 2 graphs have no nodes, first graph 1"):
        pack(torch.tensor([3, 0]), torch.tensor([0, 0]), x, none, None, y)
    with pytest.raises(UserError, match=r"outside 0 \.\. 1"):
        pack(torch.tensor([2, 1]), torch.tensor([1, 0]), x, torch.tensor([[0], [2]]), None, y)
    arrays = {"x": x, "edge_index": torch.tensor([[0], [1]]), "edge_attr": torch.zeros(1, 1), "y": y}
    for key, axis in (("x", 0), ("edge_index", 1), ("edge_attr", 0), ("y", 0)):
        longer = arrays | {key: torch.cat([arrays[key], arrays[key]], axis)}
        with pytest.raises(UserError, match=f"{key} is of"):
            pack(torch.tensor([2, 1]), torch.tensor([1, 0]), **longer)
