"""Half and double precision, the meta device and empty inputs of the core's modules."""

from __future__ import annotations

import pytest
import torch

from et.core import EdgeTopology, EnergyTransformer, EnergyTransformerBlock, descend, precision
from et.core.weighted import WeightedEdges, WeightedPairs, edge_outer_convolution, outer_convolution

HALF = (torch.bfloat16, torch.float16)
ALL = (*HALF, torch.float32, torch.float64)
TOPOLOGIES = (
    "pairs",
    "self",
    "edges",
    "weighted_edges",
    "weighted_edges_mixed",
    "weighted_pairs",
    "weighted_pairs_mixed",
)
EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2], [1, 2, 3, 4, 5, 0, 3, 5]])


def topology_of(name: str, dtype: torch.dtype, heads: int = 2, n: int = 6):
    generator = torch.Generator().manual_seed(1)
    ahat = torch.rand(EDGES.shape[1], heads, generator=generator).to(dtype).requires_grad_()
    head_mix = torch.randn(heads, heads, generator=generator).to(dtype) if name.endswith("mixed") else None
    if name == "edges":
        return EdgeTopology(EDGES, n)
    if name.startswith("weighted_edges"):
        return WeightedEdges(EDGES, ahat, n, head_mix)
    if name.startswith("weighted_pairs"):
        return WeightedPairs(torch.zeros(n, n, heads, dtype=dtype).index_put((EDGES[1], EDGES[0]), ahat), head_mix)
    return None


def block_of(name: str = "pairs", **arguments) -> EnergyTransformerBlock:
    torch.manual_seed(0)
    return EnergyTransformerBlock(
        16, 2, 8, 24, self_attention=name == "self", train_beta=True,
        attention_init_std=0.2, hopfield_init_std=0.2, **arguments,
    )  # fmt: skip


@pytest.fixture(params=(True, False))
def native(request, monkeypatch) -> bool:
    """Both kinds of CPU: with products in half precision, and without."""
    monkeypatch.setattr(precision, "CPU_HAS_BFLOAT16", request.param)
    monkeypatch.setattr(precision, "CPU_HAS_FLOAT16", request.param)
    return request.param


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_block_of_any_dtype(name, dtype, native):
    """Tokens, updates and gradients in the model's dtype, energies in at least float32, all near float64's."""
    if not native and dtype not in HALF:
        pytest.skip("the kind of CPU matters in half precision only")
    block = block_of(name, attention_bias=True, hopfield_bias=True).to(dtype)
    exact = block_of(name, attention_bias=True, hopfield_bias=True).double()
    exact.load_state_dict(block.state_dict())  # the same rounded weights
    x = torch.randn(6, 16, generator=torch.Generator().manual_seed(2)).to(dtype)
    topology, exact_topology = topology_of(name, dtype), topology_of(name, torch.float64)
    if isinstance(topology, WeightedEdges):
        exact_topology.weight = topology.weight.detach().double()
        exact_topology.head_mix = None if topology.head_mix is None else topology.head_mix.double()
    elif isinstance(topology, WeightedPairs):
        exact_topology = WeightedPairs(
            topology.ahat.detach().double(), None if topology.head_mix is None else topology.head_mix.double()
        )
    found, expected = (
        descend(b, t, 3, 0.3, s, record=True) for b, t, s in ((block, x, topology), (exact, x.double(), exact_topology))
    )
    tolerance = 20 * torch.finfo(dtype).eps
    assert found.x.dtype == dtype
    assert found.energies.dtype == found.states.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found.x.double(), expected.x, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.energies.double(), expected.energies, rtol=tolerance, atol=tolerance)
    gradients = [
        torch.autograd.grad(d.x.double().square().sum(), list(b.parameters()))
        for d, b in ((found, block), (expected, exact))
    ]
    for mine, theirs in zip(*gradients, strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - theirs).norm() <= 2 * tolerance * max(1.0, theirs.norm().item())


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("name", TOPOLOGIES)
@pytest.mark.parametrize("activation", ("relu", "softmax", "power"))
def test_methods_of_a_block_of_any_dtype(name, dtype, activation):
    block = block_of(name, activation=activation).to(dtype)
    x, topology = torch.randn(6, 16).to(dtype), topology_of(name, dtype)
    g, at_least = block.norm(x), torch.promote_types(dtype, torch.float32)
    assert g.dtype == block(x, topology).dtype == block.update(g, topology).dtype == dtype
    assert block.attention(g, topology).dtype == block.hopfield(g).dtype == dtype
    energies = (*block.module_energies(g, topology), block.energy(g, topology), block.norm.lagrangian(x).sum())
    assert all(energy.dtype == at_least and energy.isfinite() for energy in energies)
    sum(energies).backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in block.parameters())


@pytest.mark.parametrize("dtype", HALF)
def test_a_tensor_of_any_float_dtype_is_taken_by_a_block_of_any(dtype):
    """A block casts its weights to the input's dtype, so that float32 inputs of a half model are no error."""
    x = torch.randn(2, 5, 16)
    for block, tokens in ((block_of().to(dtype), x), (block_of(), x.to(dtype))):
        g = block.norm(tokens)
        assert g.dtype == block.update(g).dtype == descend(block, tokens, 2, 0.1).x.dtype == tokens.dtype
        assert block.energy(g).dtype == torch.float32


@pytest.mark.parametrize("dtype", HALF)
def test_convolutions_take_half_precision(dtype):
    x, kernel = torch.randn(6, 8).to(dtype), torch.randn(3, 3, 2).to(dtype)
    edges = EdgeTopology(EDGES, 6).edges
    ends = torch.zeros(2, 6, dtype=torch.bool)
    ends[0, 0] = ends[1, -1] = True
    dense, on_edges = outer_convolution(x, kernel), edge_outer_convolution(x, kernel, edges, *ends)
    assert dense.dtype == on_edges.dtype == torch.float32
    torch.testing.assert_close(on_edges, dense[edges.query, edges.key], rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------------------------------- meta device


def build(**arguments) -> EnergyTransformer:
    return EnergyTransformer(
        16, 2, 8, 24, steps=2, step_size=0.1, attention_bias=True, hopfield_bias=True, beta=0.3, **arguments
    )


@pytest.mark.parametrize("train_beta", (False, True))
def test_reset_parameters_after_to_empty_gives_a_new_model(train_beta):
    torch.manual_seed(5)
    expected = build(train_beta=train_beta).state_dict()
    with torch.device("meta"):
        model = build(train_beta=train_beta)
    assert all(t.is_meta for t in model.state_dict().values())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(float("nan"))  # what uninitialised memory may hold
    torch.manual_seed(5)
    model.reset_parameters()
    found = model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_every_module_with_tensors_of_its_own_can_reset_them():
    for module in build(train_beta=True).modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        with torch.no_grad():
            for tensor in own:
                tensor.fill_(float("nan"))
        if own:
            module.reset_parameters()
            assert all(tensor.isfinite().all() for tensor in own)


def test_weights_are_assigned_to_a_meta_model():
    model, x = build(), torch.randn(2, 5, 16)
    with torch.device("meta"):
        other = build()
    other.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("edges", (False, True))
def test_shapes_are_computed_on_the_meta_device(edges):
    with torch.device("meta"):
        block, x = block_of(), torch.randn(6, 16)
    topology = EdgeTopology(EDGES.to("meta"), 6) if edges else None
    out = descend(block, x, 2, 0.1, topology, record="energy")
    assert out.x.is_meta and out.x.shape == x.shape and out.energies.shape == (3,)
    out.x.sum().backward()
    assert all(p.grad.is_meta for p in block.parameters())


def test_another_default_device_moves_no_edges():
    q = torch.randn(6, 2, 4)
    expected = EdgeTopology(EDGES, 6).attend(q, q, torch.ones(2))
    beta = torch.ones(2)
    with torch.device("meta"):
        found = EdgeTopology(EDGES, 6).attend(q, q, beta)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


# -------------------------------------------------------------------------------------------------------- empty inputs


@pytest.mark.parametrize("shape", ((2, 0, 16), (0, 5, 16), (0, 0, 16), (0, 16), (2, 1, 16), (0, 1, 16)))
@pytest.mark.parametrize("self_attention", (False, True))
@pytest.mark.parametrize("store_attention", (None, True, False))
def test_no_tokens_and_no_samples(shape, self_attention, store_attention):
    block = block_of("self" if self_attention else "pairs", store_attention=store_attention)
    x = torch.randn(shape, requires_grad=True)
    result = descend(block, x, 3, 0.1, record=True)
    assert result.x.shape == x.shape and result.states.shape == (4, *shape)
    assert result.energies.shape == (4, *shape[:-2])
    if shape[-2] == 0:
        assert (result.energies == 0).all()
    with torch.no_grad():
        torch.testing.assert_close(block.energy(block.norm(x)), result.energies[0])
    gradients = torch.autograd.grad(result.x.sum(), [x, *block.parameters()], allow_unused=True)
    assert gradients[0].shape == x.shape
    if x.numel() == 0:
        assert all((gradient == 0).all() for gradient in gradients[1:])
    settled = descend(block, x.detach(), 3, 0.1, tol=1e-3)
    assert settled.x.shape == x.shape and settled.steps.shape == shape[:-2]
    assert block(x).shape == x.shape and block.attention(x).shape == block.hopfield(x).shape == x.shape


@pytest.mark.parametrize("n", (0, 1, 4))
@pytest.mark.parametrize("kind", ("edges", "weighted_edges", "weighted_pairs"))
@pytest.mark.parametrize("mixed", (False, True))
def test_no_nodes_and_no_edges(n, kind, mixed):
    none, head_mix = torch.zeros(2, 0, dtype=torch.int64), torch.randn(2, 2) if mixed else None
    topology = {
        "edges": lambda: EdgeTopology(none, n),
        "weighted_edges": lambda: WeightedEdges(none, torch.zeros(0, 2), n, head_mix),
        "weighted_pairs": lambda: WeightedPairs(torch.zeros(n, n, 2), head_mix),
    }[kind]()
    block, x = block_of(), torch.randn(n, 16, requires_grad=True)
    result = descend(block, x, 2, 0.1, topology, record=True)
    assert result.x.shape == (n, 16) and (result.attention_energies == 0).all()
    gradients = torch.autograd.grad(result.x.sum(), [x, *block.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert descend(block, x.detach(), 2, 0.1, topology, tol=1e-3).steps.shape == ()


def test_convolutions_of_no_tokens():
    kernel = torch.randn(3, 3, 2)
    edges = EdgeTopology(torch.zeros(2, 0, dtype=torch.int64), 0).edges
    ends = torch.zeros(2, 0, dtype=torch.bool)
    assert edge_outer_convolution(torch.randn(0, 8), kernel, edges, *ends).shape == (0, 2)
    assert outer_convolution(torch.randn(2, 0, 8), kernel).shape == (2, 0, 0, 2)
    assert outer_convolution(torch.randn(0, 5, 8), kernel).shape == (0, 5, 5, 2)
