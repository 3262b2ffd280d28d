import pytest
import torch

from et.core import EdgeTopology, EnergyAttention

TOPOLOGIES = ("self", "noself", "edges")


def topology_of(name, core):
    return EdgeTopology(core["edge_index"], len(core["x"])) if name == "edges" else None


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_golden_energy_and_update(name, core, golden_block):
    attention = golden_block(self_attention=name == "self").attention
    topology = topology_of(name, core)
    torch.testing.assert_close(attention.energy(core["g"], topology), core[f"{name}_energy"], rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(attention.update(core["g"], topology), core[f"{name}_update"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", TOPOLOGIES)
@pytest.mark.parametrize("bias", (False, True))
def test_update_is_the_negative_gradient_of_the_energy(name, bias, core):
    torch.manual_seed(1)
    attention = EnergyAttention(20, 3, 4, beta=0.7, self_attention=name == "self", bias=bias, init_std=0.5).double()
    if bias:
        torch.nn.init.normal_(attention.b_query)
        torch.nn.init.normal_(attention.b_key)
    topology = topology_of(name, core)
    g = core["g"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(attention.energy(g, topology), g)
    torch.testing.assert_close(attention.update(g, topology), -gradient, rtol=0, atol=1e-9)


def test_update_of_a_batch_is_the_negative_gradient():
    attention = EnergyAttention(6, 2, 3, init_std=0.8).double()
    g = torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    energy = attention.energy(g)
    assert energy.shape == (3,)
    (gradient,) = torch.autograd.grad(energy.sum(), g)
    torch.testing.assert_close(attention.update(g), -gradient, rtol=0, atol=1e-9)


def test_all_edges_without_loops_are_all_pairs():
    nodes = torch.arange(6)
    edge_index = torch.cartesian_prod(nodes, nodes).T
    edge_index = edge_index[:, edge_index[0] != edge_index[1]]
    attention = EnergyAttention(8, 2, 4, init_std=0.5).double()
    g = torch.randn(6, 8, dtype=torch.float64)
    edges = EdgeTopology(edge_index, 6)
    torch.testing.assert_close(attention.energy(g, edges), attention.energy(g), rtol=1e-12, atol=0)
    torch.testing.assert_close(attention.update(g, edges), attention.update(g), rtol=0, atol=1e-10)


def test_terms_add_up():
    g = torch.randn(2, 5, 8)
    parts = {}
    for terms in ("both", "query", "key"):
        torch.manual_seed(0)
        parts[terms] = EnergyAttention(8, 2, 4, terms=terms, init_std=0.5).update(g)
    torch.testing.assert_close(parts["query"] + parts["key"], parts["both"])
    assert not torch.allclose(parts["query"], parts["both"])


def test_query_term_is_conventional_attention():
    attention = EnergyAttention(8, 1, 4, terms="query", self_attention=True, init_std=0.5)
    g = torch.randn(2, 5, 8)
    q, k = g @ attention.w_query[0].T, g @ attention.w_key[0].T
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, k, scale=0.5) @ attention.w_query[0]
    torch.testing.assert_close(attention.update(g), expected)


def test_a_token_without_keys_contributes_nothing():
    attention = EnergyAttention(8, 2, 4, init_std=1.0)
    lonely = torch.randn(2, 1, 8)
    assert torch.equal(attention.energy(lonely), torch.zeros(2))
    assert torch.equal(attention.update(lonely), torch.zeros_like(lonely))
    unconnected = EdgeTopology(torch.zeros(2, 0, dtype=torch.long), 3)
    g = torch.randn(3, 8)
    assert attention.energy(g, unconnected) == 0
    assert torch.equal(attention.update(g, unconnected), torch.zeros_like(g))


@pytest.mark.parametrize("scale", (1e2, 1e4))
def test_scores_of_any_size_stay_finite(scale):
    attention = EnergyAttention(8, 2, 4, init_std=1.0)
    g = (scale * torch.randn(5, 8)).requires_grad_()
    energy, update = attention.energy(g), attention.update(g)
    assert torch.isfinite(energy) and torch.isfinite(update).all()
    (gradient,) = torch.autograd.grad(energy, g)
    torch.testing.assert_close(update, -gradient, rtol=1e-3, atol=1e-3 * scale)


def test_beta_defaults_and_training():
    fixed = EnergyAttention(8, 3, 16)
    torch.testing.assert_close(fixed.beta, torch.full((3,), 0.25))
    assert "beta" not in dict(fixed.named_parameters()) and "beta" in fixed.state_dict()
    trained = EnergyAttention(8, 3, 16, beta=0.5, train_beta=True)
    trained.energy(torch.randn(4, 8)).backward()
    assert trained.beta.grad is not None and trained.beta.grad.abs().min() > 0


def test_unknown_terms_are_refused():
    with pytest.raises(ValueError, match="terms must be"):
        EnergyAttention(8, 2, 4, terms="values")
