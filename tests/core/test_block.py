import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from et.core import EdgeTopology, EnergyTransformerBlock

VARIANTS = {
    "full": {},
    "self": {"self_attention": True},
    "no_hopfield": {"use_hopfield": False},
    "no_attention": {"use_attention": False},
    "biases": {"attention_bias": True, "hopfield_bias": True},
    "one_bias": {"hopfield_bias": True},
    "softmax": {"activation": "softmax"},
    "power": {"activation": "power", "hopfield_power": 3.0},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_stacked_update_is_the_negative_gradient(name, random_block):
    block = random_block(**VARIANTS[name])
    g = torch.randn(2, 7, 12, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(block.energy(g).sum(), g)
    torch.testing.assert_close(block.update(g), -gradient, rtol=0, atol=1e-9)


def test_update_and_energy_are_the_sums_of_the_modules(random_block):
    block = random_block()
    g = torch.randn(3, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(block.update(g), block.attention.update(g) + block.hopfield.update(g))
    torch.testing.assert_close(block.energy(g), block.attention.energy(g) + block.hopfield.energy(g))


def test_gradcheck_of_the_update_with_respect_to_everything(random_block):
    block = random_block(dim=4, heads=2, head_dim=2, memories=3, train_beta=True)
    names, values = zip(*block.named_parameters(), strict=True)
    values = [v.detach().clone().requires_grad_() for v in values]
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def update(x, *parameters):
        parameters = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(_Update(block), {f"block.{k}": v for k, v in parameters.items()}, x)

    assert torch.autograd.gradcheck(update, (x, *values))


class _Update(torch.nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return self.block.update(self.block.norm(x))


@given(seed=st.integers(0, 2**20), tokens=st.integers(1, 8), batch=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_permuting_tokens_permutes_the_update(seed, tokens, batch):
    torch.manual_seed(seed)
    block = EnergyTransformerBlock(6, 2, 3, 8, attention_init_std=0.7, hopfield_init_std=0.7).double()
    g, order = torch.randn(batch, tokens, 6, dtype=torch.float64), torch.randperm(tokens)
    torch.testing.assert_close(block.update(g[:, order]), block.update(g)[:, order], rtol=0, atol=1e-10)
    torch.testing.assert_close(block.energy(g[:, order]), block.energy(g), rtol=1e-10, atol=1e-10)


def test_batch_elements_do_not_influence_each_other(random_block):
    block = random_block()
    g = torch.randn(4, 5, 12, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(block.update(g)[1].square().sum(), g)
    assert gradient[1].abs().sum() > 0
    assert gradient[[0, 2, 3]].abs().sum() == 0
    torch.testing.assert_close(block.update(g[1:2])[0], block.update(g)[1])


def test_disconnected_graphs_do_not_influence_each_other(random_block):
    block = random_block()
    edges = EdgeTopology(torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]]), 4)
    g = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(block.update(g, edges)[:2].square().sum(), g)
    assert gradient[2:].abs().sum() == 0


def test_table_15_parameters_of_a_block():
    block = EnergyTransformerBlock(768, 12, 64, 3072)
    weights = sum(p.numel() for p in block.attention.parameters()) + block.hopfield.memories.numel()
    assert weights == 2 * 12 * 64 * 768 + 3072 * 768 == 3_538_944


def test_a_block_without_any_module_is_refused():
    with pytest.raises(ValueError, match="one of the two must stay"):
        EnergyTransformerBlock(4, 1, 2, 3, use_attention=False, use_hopfield=False)
