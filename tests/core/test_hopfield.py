import pytest
import torch

from et.core import EdgeTopology, HopfieldNetwork
from et.core.hopfield import relu_response


@pytest.mark.parametrize("activation", ("relu", "softmax"))
def test_golden_energy_and_update(activation, core):
    network = HopfieldNetwork(core["g"].shape[1], len(core["Xi"]), activation, beta=0.7).double()
    with torch.no_grad():
        network.memories.copy_(core["Xi"])
    torch.testing.assert_close(network.energy(core["g"]), core[f"hopfield_{activation}_energy"], rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(network.update(core["g"]), core[f"hopfield_{activation}_update"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("activation", ("relu", "softmax", "power"))
@pytest.mark.parametrize("bias", (False, True))
def test_update_is_the_negative_gradient_of_the_energy(activation, bias):
    network = HopfieldNetwork(6, 10, activation, beta=1.7, power=3, bias=bias, init_std=0.7).double()
    if bias:
        torch.nn.init.normal_(network.bias)
    g = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    energy = network.energy(g)
    assert energy.shape == (2,)
    (gradient,) = torch.autograd.grad(energy.sum(), g)
    torch.testing.assert_close(network.update(g), -gradient, rtol=0, atol=1e-9)


def test_energy_and_update_take_a_topology_as_attention_does_and_do_not_mind_it():
    network, g = HopfieldNetwork(6, 10), torch.randn(4, 6)
    topology = EdgeTopology(torch.tensor([[0, 1], [1, 2]]), 4)
    assert torch.equal(network.energy(g, topology), network.energy(g))
    assert torch.equal(network.update(g, topology), network.update(g))


def test_power_one_is_relu():
    relu, power = (HopfieldNetwork(6, 10, activation, power=1) for activation in ("relu", "power"))
    power.load_state_dict(relu.state_dict())
    g = torch.randn(4, 6)
    torch.testing.assert_close(relu.update(g), power.update(g))
    torch.testing.assert_close(relu.energy(g), power.energy(g))


def test_softmax_retrieves_a_stored_memory():
    network = HopfieldNetwork(16, 5, "softmax", beta=50.0, init_std=1.0)
    memory = network.memories[2]
    torch.testing.assert_close(network.update(memory[None])[0], memory, rtol=1e-3, atol=1e-3)


def test_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="activation must be"):
        HopfieldNetwork(4, 4, "gelu")


@pytest.mark.parametrize("bias", (False, True))
def test_first_and_second_derivatives_of_the_relu_update(bias):
    network = HopfieldNetwork(3, 4, bias=bias, init_std=0.8).double()
    inputs = [torch.randn(2, 3, 3).double().requires_grad_(), network.memories] + [network.bias] * bias

    def update(g, memories, bias=None):
        return network.update(g, weights=(memories, bias))

    assert torch.autograd.gradcheck(update, inputs)
    assert torch.autograd.gradgradcheck(update, inputs)


def test_dropped_neurons_take_no_part():
    """First and second derivatives with a mask, by finite differences; without the dropped memories the same update."""
    torch.manual_seed(0)
    g, memories = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (5, 7))
    kept = torch.rand(5, 7) > 0.4
    assert torch.autograd.gradcheck(lambda g, memories: relu_response(g, memories, kept=kept), (g, memories))
    assert torch.autograd.gradgradcheck(lambda g, memories: relu_response(g, memories, kept=kept), (g, memories))
    for token, neurons, out in zip(g, kept, relu_response(g, memories, kept=kept), strict=True):
        torch.testing.assert_close(out, relu_response(token[None], memories[neurons])[0])
