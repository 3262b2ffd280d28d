"""Baselines for whole graphs: one interface, independence of batch and node order, training."""

import pytest
import torch

from et.baselines.graph_networks import GAT, GIN, GraphTransformer
from et.graphs.batch import pack
from et.graphs.positional import with_eigenvectors


def graphs(edge_features=0):
    """A ring of five nodes, a single node, and two joined nodes."""
    ring = [[0, 1, 2, 3, 4, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 0, 1, 2, 3, 4]]
    edge_index = torch.cat([torch.tensor(ring), torch.tensor([[0, 1], [1, 0]])], dim=1)
    generator = torch.Generator().manual_seed(0)
    x, attributes = torch.randn(8, 3, generator=generator), torch.rand(12, edge_features, generator=generator)
    packed = pack(
        torch.tensor([5, 1, 2]), torch.tensor([10, 0, 2]), x, edge_index, attributes if edge_features else None,
        torch.tensor([0, 1, 0]),
    )  # fmt: skip
    return with_eigenvectors(packed, 4).select(range(3))


NETWORKS = {
    "gin": lambda edge_features, readout="graph": GIN(3, 2, readout, hidden=16),
    "gat": lambda edge_features, readout="graph": GAT(3, edge_features, 2, readout, hidden=16, num_heads=4),
    "gt": lambda edge_features, readout="graph": GraphTransformer(3, edge_features, 2, 4, readout, 16, num_heads=4),
}


@pytest.mark.parametrize("edge_features", [0, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_trained_parameter_has_a_gradient(name, edge_features):
    """Processes that share their gradients wait for all of them."""
    network = NETWORKS[name](edge_features)
    network(graphs(edge_features)).sum().backward()
    assert [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_of_one_node_trains(name):
    """Batch norm has no variance of it: the running statistics are used, and stay."""
    network = NETWORKS[name](0)
    network(graphs())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    outputs = network(graphs().select([1]))
    outputs.sum().backward()
    assert outputs.shape == (1, 2) and outputs.isfinite().all()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_heads_share_the_width():
    with pytest.raises(ValueError, match="hidden 10 must be a multiple of num_heads 4"):
        GAT(3, 0, 2, hidden=10, num_heads=4)


@pytest.mark.parametrize("edge_features", [0, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_depend_neither_on_the_batch_nor_on_the_node_order(name, edge_features):
    torch.manual_seed(0)
    network, batch = NETWORKS[name](edge_features), graphs(edge_features)
    network(batch)  # moves the running statistics of batch normalisation off their start
    network.eval()
    together = network(batch)
    assert together.shape == (3, 2)
    for number in range(3):
        assert torch.allclose(network(batch.select([number]))[0], together[number], atol=1e-5)
    permuted = batch.permute_nodes(torch.Generator().manual_seed(1))
    assert torch.allclose(network(permuted), together, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_nodes_are_read_out_one_by_one(name):
    torch.manual_seed(0)
    network, batch = NETWORKS[name](0, "nodes"), graphs()
    network(batch)
    network.eval()
    together = network(batch)
    assert together.shape == (8, 2)
    assert torch.allclose(network(batch.select([2])), together[6:], atol=1e-5)
    with pytest.raises(ValueError, match="readout"):
        NETWORKS[name](0, "mean")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_few_steps_fit_three_graphs(name):
    torch.manual_seed(0)
    network, batch = NETWORKS[name](2), graphs(2)
    network.dropout = 0.0
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(network(batch), batch.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
