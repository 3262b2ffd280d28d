"""The fast path against et/core/reference.py, and the reference against itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from et.core import EdgeTopology, EnergyTransformerBlock, descend, reference
from et.core.weighted import WeightedEdges, WeightedPairs
from tests.core.reference_weights import weights_of
from tests.core.sparse_cases import random_graph


def case(topology: str, n: int, dim: int):
    """Tokens (n, dim), the fast path's topology, the reference's pairs, and the block's arguments."""
    x = torch.randn(n, dim, dtype=torch.float64)
    if topology == "edges":
        edge_index = random_graph(n, 3 * n, seed=n)
        return x, EdgeTopology(edge_index, n), reference.edge_pairs(edge_index, n), {}
    self_attention = topology == "self"
    return x, None, reference.all_pairs(n, self_attention), {"self_attention": self_attention}


@given(
    seed=st.integers(0, 2**20), n=st.integers(1, 9), heads=st.integers(1, 3),
    topology=st.sampled_from(("pairs", "self", "edges")),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_the_descent_and_its_gradients_are_those_of_the_reference(seed, n, heads, topology):
    torch.manual_seed(seed)
    x, fast, pairs, arguments = case(topology, n, dim=6)
    block = EnergyTransformerBlock(
        6, heads, 4, 10, train_beta=True, attention_init_std=0.4, hopfield_init_std=0.4, **arguments
    ).double()
    weights = weights_of(block)
    found = descend(block, x, 3, 0.2, fast, record="energy")
    final, energies = reference.descend(x, weights, pairs, 3, 0.2)
    torch.testing.assert_close(found.x, final, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.energies, energies, rtol=1e-10, atol=1e-10)
    gradients = [
        torch.autograd.grad(out.pow(3).sum(), tuple(weights), allow_unused=True, materialize_grads=True)
        for out in (found.x, final)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("topology", ("pairs", "self", "edges"))
def test_the_update_of_the_reference_is_the_negative_gradient_of_its_energy(topology, random_block):
    x, _, pairs, _ = case(topology, 7, dim=12)
    weights = weights_of(random_block())
    g = reference.layer_norm(x, weights).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(reference.energy(g, weights, pairs), g)
    torch.testing.assert_close(reference.update(g, weights, pairs), -gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mixed", (False, True))
def test_weighted_attention_is_that_of_the_reference(mixed, random_block):
    attention, weights = random_block().attention, weights_of(random_block())
    edge_index = torch.tensor([[0, 1, 2, 2, 4, 3], [1, 0, 1, 3, 0, 3]])
    ahat = torch.randn(6, 2, dtype=torch.float64)
    ahat[2, 1] = 0.0  # switched off in one head
    head_mix = torch.randn(2, 2, dtype=torch.float64) if mixed else None
    dense = torch.zeros(5, 5, 2, dtype=torch.float64).index_put((edge_index[1], edge_index[0]), ahat)
    g = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    energy = reference.attention_energy(g, weights, torch.ones(5, 5), dense, head_mix)
    (gradient,) = torch.autograd.grad(energy, g)
    for topology in (WeightedEdges(edge_index, ahat, 5, head_mix), WeightedPairs(dense, head_mix)):
        torch.testing.assert_close(attention.energy(g, topology), energy, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(attention.update(g, topology), -gradient, rtol=0, atol=1e-10)


def test_the_core_imports_nothing_else_of_the_project():
    folder = Path(reference.__file__).parent
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert all(name.startswith("et.core") or name.split(".")[0] != "et" for name in names), (path, names)
            assert not (isinstance(node, ast.ImportFrom) and node.level), (path, "relative imports")
