"""Weighted attention: golden numbers, closed form against autograd, edges against all pairs, the convolution."""

import pytest
import torch

from et.core import EdgeTopology, EnergyAttention, reference
from et.core.sparse import SortedEdges
from et.core.weighted import (
    WeightedEdges,
    WeightedPairs,
    edge_outer_convolution,
    outer_convolution,
)

H, Y, D = 3, 4, 6


def attention(dim=D, heads=H, head_dim=Y) -> EnergyAttention:
    module = EnergyAttention(dim, heads, head_dim, train_beta=True).double()
    with torch.no_grad():
        module.beta.uniform_(0.3, 0.9)
        module.w_query.normal_()
        module.w_key.normal_()
    return module


def random_case(num_nodes=9, seed=0, density=0.4, heads=H):
    """Tokens, edges, their weights (some exactly zero), the same weights as a dense tensor, and a head mix."""
    generator = torch.Generator().manual_seed(seed)
    adjacency = torch.rand(num_nodes, num_nodes, generator=generator) < density
    query, key = adjacency.nonzero(as_tuple=True)
    weight = torch.randn(len(query), heads, generator=generator, dtype=torch.float64)
    weight[torch.rand(weight.shape, generator=generator) < 0.1] = 0.0
    dense = torch.zeros(num_nodes, num_nodes, heads, dtype=torch.float64)
    dense[query, key] = weight
    g = torch.randn(num_nodes, D, generator=generator, dtype=torch.float64)
    head_mix = torch.randn(heads, heads, generator=generator, dtype=torch.float64)
    return g, torch.stack([key, query]), weight, dense, head_mix


@pytest.fixture(scope="module")
def fixture(golden):
    return golden("weighted")


def golden_attention(fixture) -> EnergyAttention:
    heads, head_dim, dim = fixture["Wq"].shape
    module = EnergyAttention(dim, heads, head_dim, train_beta=True).double()
    with torch.no_grad():
        module.w_query.copy_(fixture["Wq"])
        module.w_key.copy_(fixture["Wk"])
        module.beta.copy_(fixture["beta"])
    return module


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_golden_energy_and_update(fixture, mixed, sparse):
    head_mix = fixture["head_mix"] if mixed else None
    if sparse:
        query, key = fixture["adjacency"].nonzero(as_tuple=True)
        edge_index = torch.stack([key, query])
        topology = WeightedEdges(edge_index, fixture["ahat"][query, key], len(fixture["g"]), head_mix)
    else:
        topology = WeightedPairs(fixture["ahat"], head_mix)
    module, name = golden_attention(fixture), "mixed" if mixed else "plain"
    assert torch.allclose(module.energy(fixture["g"], topology), fixture[f"{name}_energy"], rtol=0, atol=1e-10)
    assert torch.allclose(module.update(fixture["g"], topology), fixture[f"{name}_update"], rtol=0, atol=1e-10)


def test_golden_convolution_dense_and_on_edges(fixture):
    g, kernel, adjacency = fixture["g"], fixture["conv"], fixture["adjacency"]
    dense = outer_convolution(g, kernel) * adjacency[..., None]
    assert torch.allclose(dense, fixture["ahat"], rtol=0, atol=1e-10)
    query, key = adjacency.nonzero(as_tuple=True)
    edges = SortedEdges.from_edge_index(torch.stack([key, query]), len(g))
    first, last = torch.zeros(len(g), dtype=torch.bool), torch.zeros(len(g), dtype=torch.bool)
    first[0], last[-1] = True, True
    on_edges = edge_outer_convolution(g, kernel, edges, first, last)
    assert torch.allclose(on_edges, fixture["ahat"][edges.query, edges.key], rtol=0, atol=1e-10)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("density", [0.0, 0.15, 0.6])
def test_update_is_minus_the_gradient_and_edges_agree_with_pairs(mixed, density):
    g, edge_index, weight, dense, head_mix = random_case(density=density)
    head_mix = head_mix if mixed else None
    module = attention()
    on_edges, on_pairs = WeightedEdges(edge_index, weight, len(g), head_mix), WeightedPairs(dense, head_mix)
    g.requires_grad_()
    for topology in (on_edges, on_pairs):
        (gradient,) = torch.autograd.grad(module.energy(g, topology), g)
        assert torch.allclose(module.update(g, topology), -gradient, rtol=0, atol=1e-9)
    assert torch.allclose(module.token_energy(g, on_edges), module.token_energy(g, on_pairs), rtol=0, atol=1e-9)


def plain_update(module, g, ahat, head_mix):
    """The update of et/core/reference.py, differentiable with respect to everything."""
    weights = reference.Weights(None, None, module.w_query, module.w_key, module.beta, None)
    energy = reference.attention_energy(g, weights, torch.ones(len(g), len(g)), ahat, head_mix)
    return -torch.autograd.grad(energy, g, create_graph=True)[0]


@pytest.mark.parametrize("mixed", [False, True])
def test_second_derivatives_along_edges(mixed):
    g, edge_index, weight, _, head_mix = random_case(seed=4)
    module = attention().requires_grad_(False)

    def update(tokens, leaf, mix):
        return module.update(tokens, WeightedEdges(edge_index, leaf, len(g), mix if mixed else None))

    weight = weight.where(weight != 0, 0.5)  # at 0, where an edge is switched off, there is no derivative
    inputs = [x.clone().requires_grad_() for x in (g, weight, head_mix)]
    assert torch.autograd.gradgradcheck(update, inputs, fast_mode=True)


def test_energies_along_edges_under_torch_func():
    g, edge_index, weight, _, _ = random_case(seed=5)
    module = attention()
    for topology in (EdgeTopology(edge_index, len(g)), WeightedEdges(edge_index, weight, len(g))):
        gradient = torch.func.grad(lambda tokens, t=topology: module.energy(tokens, t))(g)
        assert torch.allclose(-gradient, module.update(g, topology), rtol=0, atol=1e-9)


@pytest.mark.parametrize("backend", ["reference", "torch", "numba", "pairs"])
@pytest.mark.parametrize("mixed", [False, True])
def test_training_gradients_are_those_of_plain_operations(monkeypatch, mixed, backend):
    if backend != "pairs":
        monkeypatch.setenv("ET_SPARSE_BACKEND", backend)
    g, edge_index, weight, dense, head_mix = random_case(seed=3)
    module = attention()
    key, query = edge_index

    def gradients(ahat, update):
        leaf = ahat.clone().requires_grad_()
        mix = head_mix.clone().requires_grad_() if mixed else None
        tokens = g.clone().requires_grad_()
        out = update(tokens, leaf, mix)
        wanted = [leaf, tokens, *module.parameters(), *([mix] if mixed else [])]
        return out, *torch.autograd.grad(out.pow(3).sum(), wanted)

    expected = list(gradients(dense, lambda *parts: plain_update(module, *parts)))
    if backend == "pairs":
        found = gradients(dense, lambda tokens, leaf, mix: module.update(tokens, WeightedPairs(leaf, mix)))
        expected[1] = expected[1] * (dense != 0)  # a pair that is no edge has no say in whether it is one
        found = [found[0], found[1] * (dense != 0), *found[2:]]
    else:
        expected[1] = expected[1][query, key]
        found = gradients(
            weight, lambda tokens, leaf, mix: module.update(tokens, WeightedEdges(edge_index, leaf, len(g), mix))
        )
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.isfinite(mine).all()
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-9 * theirs.detach().abs().max().item())


@pytest.mark.parametrize("topology", ["edges", "pairs"])
def test_half_precision_stays_near(topology):
    g, edge_index, weight, dense, _ = random_case(seed=4)
    module = attention().float()
    made = WeightedEdges(edge_index, weight.float(), len(g)) if topology == "edges" else WeightedPairs(dense.float())
    q, k = module.split_heads(torch.nn.functional.linear(g.float(), module.stacked_weights()))
    exact = made.attend(q, k, module.beta)
    rounded = made.attend(q.bfloat16(), k.bfloat16(), module.beta)
    for mine, theirs in zip(rounded, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.float() - theirs).abs().max() < 0.05 * theirs.abs().max()


def test_a_batch_of_dense_graphs_is_each_of_them():
    module = attention()
    cases = [random_case(seed=seed) for seed in (1, 2)]
    tokens, ahat = torch.stack([c[0] for c in cases]), torch.stack([c[3] for c in cases])
    together = module.update(tokens, WeightedPairs(ahat))
    for index, (g, _, _, dense, _) in enumerate(cases):
        assert torch.allclose(together[index], module.update(g, WeightedPairs(dense)), rtol=0, atol=1e-12)


def test_a_query_without_keys_is_left_alone_and_a_nan_is_not_hidden():
    module, (g, _, _, dense, _) = attention(), random_case()
    dense[2] = 0.0
    assert (module.update(g, WeightedPairs(dense)).isfinite()).all()
    dense[3, 4] = float("nan")
    assert not (module.update(g, WeightedPairs(dense)).isfinite()).all()


def test_convolution_on_edges_stops_at_the_ends_of_each_graph():
    kernel = torch.randn(3, 3, H, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sizes, generator = [1, 5, 8], torch.Generator().manual_seed(1)
    graphs = [torch.randn(size, D, dtype=torch.float64, generator=generator) for size in sizes]
    pairs, start, alone = [], 0, []
    first, last = torch.zeros(sum(sizes), dtype=torch.bool), torch.zeros(sum(sizes), dtype=torch.bool)
    for x in graphs:
        node = torch.arange(len(x)) + start
        pairs.append(torch.cartesian_prod(node, node).T.flip(0))
        first[start], last[start + len(x) - 1] = True, True
        alone.append(outer_convolution(x, kernel).flatten(0, 1))
        start += len(x)
    edges = SortedEdges.from_edge_index(torch.cat(pairs, dim=1), sum(sizes))
    together = edge_outer_convolution(torch.cat(graphs), kernel, edges, first, last)
    assert torch.allclose(together, torch.cat(alone), rtol=0, atol=1e-10)


def test_wrong_shapes_are_named():
    g, edge_index, weight, _, _ = random_case()
    with pytest.raises(ValueError, match="num_nodes"):
        WeightedEdges(edge_index, weight)
    with pytest.raises(ValueError, match="weight must be"):
        WeightedEdges(SortedEdges.from_edge_index(edge_index, len(g)), weight[:-1])


def test_second_derivatives_of_the_convolution_along_edges():
    _, edge_index, _, _, _ = random_case(seed=6)
    edges = SortedEdges.from_edge_index(edge_index, 9)
    ends = torch.zeros(2, 9, dtype=torch.bool)
    ends[0, 0] = ends[1, -1] = True
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((9, D), (3, 3, H))]
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradgradcheck(lambda x, kernel: edge_outer_convolution(x, kernel, edges, *ends), inputs)
