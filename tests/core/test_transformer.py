"""EnergyTransformer, block, attention and Hopfield network as modules like any other."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from et.core import EdgeTopology, EnergyAttention, EnergyTransformer, HopfieldNetwork, descend

SIZES = {"dim": 8, "num_heads": 2, "head_dim": 4, "num_memories": 12}


def model(**arguments) -> EnergyTransformer:
    torch.manual_seed(0)
    return EnergyTransformer(**SIZES, **({"steps": 3, "step_size": 0.2} | arguments))


def test_it_is_the_descent_of_its_block():
    x, nodes = torch.randn(2, 5, 8), torch.randn(4, 8)
    topology = EdgeTopology(torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]), 4)
    network = model(self_attention=True)
    assert network.block.attention.all_pairs.self_attention
    assert torch.equal(network(x), descend(network.block, x, 3, 0.2).x)
    assert torch.equal(network(nodes, topology), descend(network.block, nodes, 3, 0.2, topology).x)
    assert network(x).shape == x.shape and network(nodes, topology=topology).shape == nodes.shape


def test_a_step_is_the_step_size_times_the_block():
    x, network = torch.randn(2, 5, 8), model(steps=1)
    block = network.block
    torch.testing.assert_close(network(x), x + 0.2 * block(x))
    torch.testing.assert_close(block(x), block.update(block.norm(x)))
    selected = torch.tensor([3, 1])
    torch.testing.assert_close(block(x, query_index=selected), block(x)[:, selected])


@pytest.mark.parametrize("network", (EnergyAttention(8, 2, 4), HopfieldNetwork(8, 12)))
def test_calling_a_part_is_its_update(network):
    g = torch.randn(2, 5, 8)
    assert torch.equal(network(g), network.update(g))


def test_noise_and_checkpointing_are_for_training():
    network, x = model(noise_std=0.5, checkpoint=True), torch.randn(2, 5, 8)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), descend(network.block, x, 3, 0.2).x)


def test_forward_hooks_see_every_step():
    network, x = model(), torch.randn(2, 5, 8)
    seen = {}
    for name, module in network.named_modules():
        module.register_forward_hook(lambda m, inputs, output, name=name: seen.setdefault(name, []).append(output))
    network(x)
    assert {name: len(outputs) for name, outputs in seen.items()} == {
        "": 1, "block": 3, "block.norm": 3, "block.attention": 3, "block.hopfield": 3,
    }  # fmt: skip
    torch.testing.assert_close(seen["block"][1], seen["block.attention"][1] + seen["block.hopfield"][1])
    network.block.hopfield.register_forward_hook(lambda m, inputs, output: torch.zeros_like(output))
    without = EnergyTransformer(**SIZES, steps=3, step_size=0.2, use_hopfield=False)
    without.load_state_dict(network.state_dict(), strict=False)
    torch.testing.assert_close(network(x), without(x))


def test_a_hook_on_the_block_runs_once_a_call():
    block, calls = model().block, []
    block.register_forward_hook(lambda *arguments: calls.append(1))
    block(torch.randn(2, 5, 8))
    assert len(calls) == 1


def test_sequential_of_layers_trains():
    network = nn.Sequential(nn.Linear(6, 8), model(), nn.LayerNorm(8), nn.Linear(8, 2))
    network(torch.randn(3, 5, 6)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    parts = nn.Sequential(model().block.norm, EnergyAttention(8, 2, 4), HopfieldNetwork(8, 12))
    assert parts(torch.randn(3, 5, 8)).shape == (3, 5, 8)


def test_compiles_to_one_graph():
    network, x = model(), torch.randn(2, 5, 8)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), network(x))


def test_copies_and_state_dicts():
    network, x = model(train_beta=True), torch.randn(2, 5, 8)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(x), network(x))
    other = EnergyTransformer(**SIZES, steps=3, step_size=0.2, train_beta=True)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(x), network(x))
