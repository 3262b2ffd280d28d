"""The two layouts: CLS edges, placing and taking tokens, sinks."""

import pytest
import torch

from et.graphs.layout import PaddedLayout, SparseLayout, make_layout, token_edges


def test_cls_sees_and_is_seen_by_every_token_of_its_graph(make_graphs):
    batch = make_graphs(edge_features=2)
    edge_index, features = token_edges(batch)
    graph_of_token = torch.repeat_interleave(batch.sizes + 1)
    assert torch.equal(graph_of_token[edge_index[0]], graph_of_token[edge_index[1]])
    edges = {tuple(edge) for edge in edge_index.T.tolist()}
    assert len(edges) == edge_index.shape[1] == batch.num_edges + 2 * batch.num_nodes + len(batch)
    for cls, size in zip(batch.cls_tokens.tolist(), batch.sizes.tolist(), strict=True):
        for token in range(cls, cls + size + 1):
            assert (cls, token) in edges and (token, cls) in edges
    assert (features[batch.num_edges :] == 1).all()
    assert torch.equal(features[: batch.num_edges], batch.edge_attr)
    assert torch.equal(edge_index[:, : batch.num_edges], batch.node_tokens[batch.edge_index])


@pytest.mark.parametrize("sinks", [False, True])
def test_padded_tokens_come_back(graphs, sinks):
    layout = PaddedLayout(graphs, sinks)
    tokens = torch.randn(graphs.num_nodes + len(graphs), 3)
    x = layout.place(tokens, padding=torch.full((3,), 7.0))
    assert x.shape == (4, 10, 3)
    assert torch.equal(layout.tokens(x), tokens)
    gaps = x[~layout.real]
    assert (gaps == (7.0 if sinks else 0.0)).all()


def test_cls_tokens_are_where_the_layout_says(graphs):
    tokens = torch.randn(graphs.num_nodes + len(graphs), 3)
    for layout in (SparseLayout(graphs), PaddedLayout(graphs, sinks=True)):
        x = layout.place(tokens, padding=torch.zeros(3))
        assert torch.equal(x.index_select(-2, layout.cls).flatten(0, -2), tokens[graphs.cls_tokens])


def test_cls_and_padding_attend_to_each_other_and_nodes_ignore_padding(make_graphs):
    graphs = make_graphs(edge_features=2)
    adjacency = PaddedLayout(graphs, sinks=True).features
    plain = PaddedLayout(graphs, sinks=False).features
    for number, size in enumerate((graphs.sizes + 1).tolist()):
        assert (adjacency[number, size:, :size] == 1).all()
        assert (adjacency[number, 0] == 1).all()
        assert (adjacency[number, 1:, size:] == 0).all()
        assert torch.equal(adjacency[number, :size, :size], plain[number, :size, :size])
        assert (plain[number, size:] == 0).all() and (plain[number, :, size:] == 0).all()


def test_edge_errors_are_means_over_a_graphs_own_edges_in_both_layouts(make_graphs):
    graphs = make_graphs(edge_features=2)
    decoder = torch.nn.Linear(2, 2, bias=False)
    graph = graphs.graph_of_node[graphs.edge_index[1]]
    errors = (decoder(graphs.edge_attr) - graphs.edge_attr).square().mean(1)
    expected = [errors[graph == g].mean().item() if (graph == g).any() else 0.0 for g in range(len(graphs))]
    for layout in (SparseLayout(graphs), PaddedLayout(graphs, sinks=False)):
        # With the features themselves as ahat, what is on the edges must be those features.
        found = layout.edge_errors(layout.features, decoder)
        assert torch.allclose(found, torch.tensor(expected), atol=1e-6)


def test_the_released_edge_error_is_a_sum_over_all_pairs(make_graphs):
    graphs = make_graphs(edge_features=2)
    layout, decoder = PaddedLayout(graphs, sinks=True), torch.nn.Linear(3, 2, bias=False)
    ahat = torch.randn(*layout.features.shape[:3], 3)
    found = layout.edge_errors(ahat, decoder)
    for g in range(len(graphs)):
        squares = (ahat[g] @ decoder.weight.T - layout.features[g]) ** 2
        assert found[g].item() == pytest.approx((squares.sum() / (layout.features[g] != 0).sum()).item(), rel=1e-5)


def test_unknown_layouts_are_refused(graphs):
    with pytest.raises(ValueError, match="sparse"):
        make_layout(graphs, "csr", False)
    with pytest.raises(ValueError, match="padding"):
        make_layout(graphs, "sparse", True)
