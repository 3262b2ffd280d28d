import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from et.core import EdgeTopology, EnergyTransformerBlock, decreasing, descend, precision
from et.core.descent import speed


@pytest.mark.parametrize("name", ("self", "noself", "edges"))
def test_golden_trajectory(name, core, golden_block):
    block = golden_block(self_attention=name == "self")
    topology = EdgeTopology(core["edge_index"], len(core["x"])) if name == "edges" else None
    result = descend(block, core["x"], int(core["steps"]), float(core["alpha"]), topology, record=True)
    torch.testing.assert_close(result.x, core[f"{name}_x"], rtol=0, atol=1e-10)
    torch.testing.assert_close(result.energies, core[f"{name}_energies"], rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(result.energies, result.attention_energies + result.hopfield_energies)
    torch.testing.assert_close(result.states[-1], result.x)
    torch.testing.assert_close(result.states[0], core["x"])


@given(
    seed=st.integers(0, 2**20), self_attention=st.booleans(), activation=st.sampled_from(("relu", "softmax", "power"))
)
@settings(max_examples=25, deadline=None)
def test_energy_never_rises_with_a_small_step(seed, self_attention, activation):
    torch.manual_seed(seed)
    block = EnergyTransformerBlock(
        8, 2, 4, 12, self_attention=self_attention, activation=activation,
        attention_init_std=0.4, hopfield_init_std=0.3,
    ).double()  # fmt: skip
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    energies = descend(block, x, steps=20, step_size=1e-3, record="energy").energies
    assert (energies.diff(dim=0) <= 1e-9).all()
    assert (energies[-1] < energies[0]).all()


def test_recording_changes_nothing_and_keeps_what_it_is_asked_for():
    block = EnergyTransformerBlock(8, 2, 4, 12)
    x = torch.randn(3, 5, 8)
    plain, energy, full = (descend(block, x, 4, 0.5, record=record) for record in (False, "energy", True))
    assert torch.equal(plain.x, full.x) and torch.equal(plain.x, energy.x)
    assert plain.energies is None and plain.states is None and energy.states is None
    assert energy.energies.shape == (5, 3) and full.states.shape == (5, 3, 5, 8)


def test_no_steps_return_the_tokens():
    x = torch.randn(2, 3, 8)
    assert torch.equal(descend(EnergyTransformerBlock(8, 2, 4, 12), x, 0, 0.1).x, x)
    with pytest.raises(ValueError, match="steps"):
        descend(EnergyTransformerBlock(8, 2, 4, 12), x, -1, 0.1)


def test_noise_has_the_deviation_of_equation_27():
    block = EnergyTransformerBlock(8, 2, 4, 12)
    x = torch.randn(64, 16, 8)
    torch.manual_seed(0)
    noisy = descend(block, x, 1, 0.25, noise_std=0.02).x - descend(block, x, 1, 0.25).x
    assert noisy.std().item() == pytest.approx(0.25**0.5 * 0.02, rel=0.05)


@pytest.mark.parametrize("native", (True, False))
def test_bfloat16_stays_within_a_percent_of_float32(native, monkeypatch):
    monkeypatch.setattr(precision, "CPU_HAS_BFLOAT16", native)  # both kinds of CPU
    torch.manual_seed(0)
    block = EnergyTransformerBlock(64, 4, 16, 256, attention_init_std=0.1, hopfield_init_std=0.05)
    x = torch.randn(4, 50, 64)
    exact = descend(block, x, 12, 0.1, record=True)
    with torch.autocast("cpu", torch.bfloat16):
        rough = descend(block, x, 12, 0.1, record=True)
    moved = (exact.x - x).norm()
    assert moved > 0.1 * x.norm()
    assert (rough.x - exact.x).norm() < 0.01 * exact.x.norm()
    assert rough.x.dtype == rough.energies.dtype == torch.float32
    assert torch.equal(rough.x, exact.x) != native
    torch.testing.assert_close(rough.energies, exact.energies, rtol=0.01, atol=0)


NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on the CPU needs g++")


@pytest.mark.parametrize("backend", ("aot_eager", pytest.param("inductor", marks=[NEEDS_COMPILER, pytest.mark.slow])))
def test_compiles_to_one_graph(backend):
    block = EnergyTransformerBlock(8, 2, 4, 12)
    x = torch.randn(2, 5, 8)
    compiled = torch.compile(lambda x: descend(block, x, 2, 0.1).x, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), descend(block, x, 2, 0.1).x)
    if backend == "aot_eager":  # each dtype compiles anew, which inductor takes half a minute for
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(compiled(x), descend(block, x, 2, 0.1).x, rtol=1e-2, atol=1e-2)


def test_compiles_to_one_graph_with_edges_that_were_sorted_before():
    torch.manual_seed(0)
    block, x = EnergyTransformerBlock(16, 2, 8, 8), torch.randn(10, 16, requires_grad=True)
    edge_index = torch.randint(10, (2, 40))
    topology = EdgeTopology(edge_index, 10)
    compiled = torch.compile(
        lambda x: descend(block, x, 2, 0.1, topology=topology).x, fullgraph=True, backend="aot_eager"
    )
    expected = descend(block, x, 2, 0.1, topology=EdgeTopology(edge_index, 10)).x
    result = compiled(x)
    torch.testing.assert_close(result, expected)
    gradients = [torch.autograd.grad(out.square().sum(), x)[0] for out in (result, expected)]
    torch.testing.assert_close(*gradients)


def test_gradients_reach_every_parameter_through_all_steps():
    block = EnergyTransformerBlock(8, 2, 4, 12, train_beta=True)
    descend(block, torch.randn(2, 5, 8), 3, 0.1).x.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())


@pytest.mark.parametrize("noise_std", (0.0, 0.1))
def test_checkpointing_changes_no_number(noise_std):
    block = EnergyTransformerBlock(8, 2, 4, 12, train_beta=True)
    x = torch.randn(2, 5, 8, requires_grad=True)
    found = []
    for checkpoint in (False, True):
        torch.manual_seed(1)
        end = descend(block, x, 3, 0.5, noise_std=noise_std, checkpoint=checkpoint).x
        found.append((end, *torch.autograd.grad(end.square().sum(), (x, *block.parameters()))))
    for plain, checkpointed in zip(*found, strict=True):
        assert torch.equal(plain, checkpointed)


def test_checkpointing_keeps_little_more_than_the_states():
    block, x = EnergyTransformerBlock(16, 2, 8, 64), torch.randn(2, 32, 16)
    numbers = {}
    for checkpoint in (False, True):
        kept = {}

        def pack(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            end = descend(block, x, 6, 0.1, checkpoint=checkpoint).x
        numbers[checkpoint] = sum(kept.values())
        end.sum().backward()
    assert numbers[False] > 6 * 8 * x.numel()
    assert numbers[True] <= 7 * x.numel() + sum(p.numel() for p in block.parameters())


def settling_block():
    """A block under which tokens come to rest within some hundred steps of size 0.3."""
    torch.manual_seed(0)
    return EnergyTransformerBlock(8, 2, 4, 12, attention_init_std=0.3, hopfield_init_std=0.3).double()


def test_tol_stops_each_sample_where_it_would_have_come_to_rest_alone():
    block, x = settling_block(), torch.randn(3, 5, 8, dtype=torch.float64)
    together = descend(block, x, 2000, 0.3, tol=3e-3, record=True)
    assert len(set(together.steps.tolist())) == 3 and together.steps.max() < 2000
    assert len(together.energies) == together.steps.max() + 1
    for number in range(3):
        alone = descend(block, x[number : number + 1], 2000, 0.3, tol=3e-3)
        assert alone.steps == together.steps[number]
        torch.testing.assert_close(alone.x[0], together.x[number])
        plain = descend(block, x[number : number + 1], int(alone.steps), 0.3, record=True)
        torch.testing.assert_close(plain.x[0], together.x[number])
        speeds = [
            speed(block.norm(a), block.norm(b), 0.3) for a, b in zip(plain.states, plain.states[1:], strict=False)
        ]
        assert speeds[-1] <= 3e-3 < min(speeds[:-1])


def test_tol_takes_at_most_the_steps_it_is_given():
    result = descend(settling_block(), torch.randn(2, 5, 8, dtype=torch.float64), 3, 0.3, tol=0.0)
    assert result.steps.tolist() == [3, 3]


def test_a_sample_at_rest_has_lower_energy_and_hardly_moves_on():
    block, x = settling_block(), torch.randn(2, 5, 8, dtype=torch.float64)
    rest = descend(block, x, 1000, 0.3, tol=1e-3, record="energy")
    further = descend(block, rest.x, 20, 0.3)
    assert (rest.energies[-1] < rest.energies[0]).all()
    torch.testing.assert_close(block.norm(further.x), block.norm(rest.x), rtol=0, atol=3e-2)


def test_tol_works_along_edges_and_refuses_noise():
    block, x = settling_block(), torch.randn(4, 8, dtype=torch.float64)
    topology = EdgeTopology(torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]), 4)
    result = descend(block, x, 2000, 0.3, topology, tol=3e-3)
    assert result.steps.shape == () and 1 < result.steps < 2000
    with pytest.raises(ValueError, match="noise"):
        descend(block, x, 2, 0.3, topology, noise_std=0.1, tol=1e-3)


def test_step_sizes_one_by_one():
    block, x = settling_block(), torch.randn(2, 5, 8, dtype=torch.float64)
    sizes = [0.3, 0.2, 0.1]
    expected = x
    for size in sizes:
        expected = descend(block, expected, 1, size).x
    torch.testing.assert_close(descend(block, x, 3, sizes).x, expected)
    trained = torch.tensor(sizes, dtype=torch.float64, requires_grad=True)
    result = descend(block, x, 3, trained).x
    torch.testing.assert_close(result, expected)
    result.square().sum().backward()
    assert (trained.grad != 0).all()
    with pytest.raises(ValueError, match="3 step sizes for 4 steps"):
        descend(block, x, 4, sizes)


def test_decreasing_step_sizes():
    assert decreasing(0.4, 4).tolist() == pytest.approx([0.4, 0.4 / 2**0.5, 0.4 / 3**0.5, 0.2])
    assert decreasing(0.4, 3, power=1).tolist() == pytest.approx([0.4, 0.2, 0.4 / 3])


def test_backward_inside_autocast_works():
    block, x = EnergyTransformerBlock(8, 2, 4, 12), torch.randn(2, 5, 8)
    gradients = []
    for inside in (False, True):
        block.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            end = descend(block, x, 3, 0.1).x
            if inside:
                end.square().sum().backward()
        if not inside:
            end.square().sum().backward()
        gradients.append([p.grad for p in block.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() <= 0.02 * one.norm()


@pytest.mark.parametrize("topology", [None, "edges"])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_query_index_selects_tokens_of_the_whole_descent(topology, steps):
    torch.manual_seed(0)
    block = EnergyTransformerBlock(8, 2, 4, 10, attention_init_std=0.5, hopfield_init_std=0.5).double()
    x = torch.randn(6, 8, dtype=torch.float64)
    query_index = torch.tensor([4, 0])
    if topology == "edges":
        topology = EdgeTopology(torch.randint(6, (2, 15)), 6)
    else:
        x = x.expand(3, -1, -1).contiguous()
    found = descend(block, x, steps, 0.3, topology, query_index=query_index).x
    whole = descend(block, x, steps, 0.3, topology).x.index_select(-2, query_index)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)
    for mine, theirs in zip(*(torch.autograd.grad(y.pow(3).sum(), [*block.parameters()], allow_unused=True)
                              for y in (found, whole) if steps), strict=True):  # fmt: skip
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="leave out query_index"):
        descend(block, x, steps, 0.3, record=True, query_index=query_index)
