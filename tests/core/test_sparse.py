"""Every backend of sparse attention against plain gather and scatter in double precision."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from et.core import EdgeTopology, EnergyAttention, sparse
from et.core.csr import SortedEdges
from et.core.kernels import chunked
from et.core.kernels import reference as kernels_reference
from et.core.weighted import WeightedEdges
from tests.core.sparse_cases import (
    GRAPHS,
    assert_blocks_agree,
    assert_nan_is_kept,
    assert_relative,
    in_double,
    operands,
    outputs_and_gradients,
    random_graph,
    star,
)

FAST = ("torch", "numba")


@pytest.fixture(params=GRAPHS)
def graph(request) -> SortedEdges:
    return SortedEdges.from_edge_index(*GRAPHS[request.param])


@pytest.fixture(params=FAST)
def backend(request, monkeypatch) -> str:
    """Each fast backend, with chunks, tasks and tiles so small that every graph is cut into several."""
    monkeypatch.setitem(chunked.CHUNK_ELEMENTS, "cpu", 100)
    monkeypatch.setattr(pytest.importorskip("et.core.kernels.numba.runtime"), "SMALLEST_TASK", 16)
    monkeypatch.setattr(pytest.importorskip("et.core.kernels.numba.attention"), "TILE_BYTES", 160)
    return request.param


# ---------------------------------------------------------------------------------------- agreement with the reference


OPERATIONS = [("attention", {}), ("attention", {"clamp": 0.5}), ("log_partition", {})]


@pytest.mark.parametrize(("operation", "options"), OPERATIONS)
def test_attention_agrees_with_the_reference(graph, backend, operation, options):
    inputs = operands(graph)
    actual = outputs_and_gradients(getattr(sparse, operation), inputs, graph, **options, backend=backend)
    expected = outputs_and_gradients(getattr(kernels_reference, operation), in_double(inputs), graph, **options)
    assert_relative(actual, expected)


@pytest.mark.parametrize("width", [1, 8, 64, 128])
def test_usual_widths_agree_with_the_reference(backend, width):
    edges = SortedEdges.from_edge_index(random_graph(30, 400), 30)
    inputs = operands(edges, heads=2, width=width)
    actual = outputs_and_gradients(sparse.attention, inputs, edges, backend=backend)
    assert_relative(actual, outputs_and_gradients(kernels_reference.attention, in_double(inputs), edges))


def test_primitives_agree_with_the_reference(graph, backend):
    q, k, _ = operands(graph)
    weight = torch.randn(graph.num_edges, 3, generator=torch.Generator().manual_seed(2)).requires_grad_()
    for name, inputs, arguments in [
        ("edge_scores", [q, k], ()),
        ("edge_aggregate", [weight, k], (False,)),
        ("edge_aggregate", [weight, q], (True,)),
        ("segment_logsumexp", [weight], ()),
    ]:
        actual = outputs_and_gradients(getattr(sparse, name), inputs, graph, *arguments, backend=backend)
        expected = outputs_and_gradients(getattr(kernels_reference, name), in_double(inputs), graph, *arguments)
        assert_relative(actual, expected)


@pytest.mark.parametrize("clamp", [math.inf, 0.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_blocks_of_rows_with_shared_heads_agree_with_the_reference(graph, backend, dtype, clamp):
    if graph.num_nodes:
        kernels = sparse.select_backend(backend, torch.empty(0))
        assert_blocks_agree(kernels, graph, 7, clamp, dtype)


@pytest.mark.parametrize("clamp", [None, 0.5])
def test_nan_is_kept(backend, clamp):
    assert_nan_is_kept(backend, SortedEdges.from_edge_index(random_graph(9, 30), 9), clamp)


@pytest.mark.parametrize("magnitude", [1.0, 256.0, 4096.0])
def test_huge_scores_neither_overflow_nor_lose_precision(backend, magnitude):
    # Small integers times a power of two: inner products are exact in float32, however large, and many keys tie.
    edges = SortedEdges.from_edge_index(random_graph(25, 300), 25)
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randint(-2, 3, (25, 2, 8), generator=generator).float() * magnitude**0.5 for _ in range(2))
    inputs = [q.requires_grad_(), k.requires_grad_(), torch.tensor([1.0, 0.5]).requires_grad_()]
    actual = outputs_and_gradients(sparse.attention, inputs, edges, backend=backend)
    expected = outputs_and_gradients(kernels_reference.attention, in_double(inputs), edges)
    assert_relative(actual[:4], expected[:4])
    # The gradient of beta cancels to nothing where one key takes all: held to the size of the terms it is the sum of.
    assert (actual[4] - expected[4]).abs().max() <= 1e-5 * (q * expected[2]).abs().max()


def test_scores_of_minus_infinity_are_no_edges(backend):
    edges = SortedEdges.from_edge_index(torch.tensor([[0, 1, 2], [0, 0, 1]]), 3)
    scores = torch.tensor([[1.0], [-torch.inf], [-torch.inf]], requires_grad=True)
    result = sparse.segment_logsumexp(scores, edges, backend)
    assert result.flatten().tolist() == [1.0, 0.0, 0.0]
    assert torch.autograd.grad(result.sum(), scores)[0].flatten().tolist() == [1.0, 0.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 12), st.integers(1, 3), st.integers(1, 9), st.sampled_from(FAST))
def test_any_graph_agrees_with_the_reference_in_any_order_of_its_edges(data, num_nodes, heads, width, backend):
    node = st.integers(0, num_nodes - 1)
    pairs = data.draw(st.lists(st.tuples(node, node), max_size=60))
    edge_index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    shuffled = edge_index[:, torch.tensor(data.draw(st.permutations(range(len(pairs)))), dtype=torch.int64)]
    edges = SortedEdges.from_edge_index(edge_index, num_nodes)
    inputs = operands(edges, heads, width, seed=len(pairs))
    actual = outputs_and_gradients(sparse.attention, inputs, edges, backend=backend)
    assert_relative(actual, outputs_and_gradients(kernels_reference.attention, in_double(inputs), edges))
    again = outputs_and_gradients(
        sparse.attention, inputs, SortedEdges.from_edge_index(shuffled, num_nodes), backend=backend
    )
    assert all(torch.equal(x, y) for x, y in zip(actual, again, strict=True))


# ------------------------------------------------------------------------------------------------ gradients in double


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize(("operation", "options"), OPERATIONS)
def test_first_and_second_derivatives_are_those_of_finite_differences(backend, operation, options):
    edges = SortedEdges.from_edge_index(random_graph(5, 14), 6)
    inputs = operands(edges, heads=2, width=3, dtype=torch.float64)

    def function(q: Tensor, k: Tensor, beta: Tensor):
        return getattr(sparse, operation)(q, k, beta, edges, **options, backend=backend)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_derivatives_of_the_primitives_are_those_of_finite_differences(backend):
    edges = SortedEdges.from_edge_index(random_graph(5, 14), 6)
    q, k, _ = operands(edges, heads=2, width=3, dtype=torch.float64)
    weight = torch.randn(14, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    for function, inputs in [
        (lambda q, k: sparse.edge_scores(q, k, edges, backend), (q, k)),
        (lambda w, x: sparse.edge_aggregate(w, x, edges, False, backend), (weight, k)),
        (lambda w, x: sparse.edge_aggregate(w, x, edges, True, backend), (weight, q)),
        (lambda w: sparse.segment_logsumexp(w, edges, backend), (weight,)),
    ]:
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("backend", FAST)
def test_update_is_minus_the_gradient_of_the_energy(backend):
    torch.manual_seed(0)
    attention = EnergyAttention(7, 2, 5, train_beta=True, init_std=0.5).double()
    topology = EdgeTopology(random_graph(15, 60), 16, backend=backend)
    g = torch.randn(16, 7, dtype=torch.float64, requires_grad=True)
    gradient = torch.autograd.grad(attention.energy(g, topology), g)[0]
    torch.testing.assert_close(attention.update(g, topology), -gradient)


@pytest.mark.parametrize("backend", FAST)
def test_only_what_needs_a_gradient_gets_one(backend):
    edges = SortedEdges.from_edge_index(random_graph(5, 14), 5)
    q, k, beta = operands(edges)
    u, v = sparse.attention(q, k.detach(), beta.detach(), edges, backend=backend)
    (first,) = torch.autograd.grad(u.sum() + v.square().sum(), q, create_graph=True)
    assert torch.autograd.grad(first.square().sum(), q)[0].isfinite().all()
    with torch.no_grad():
        assert not sparse.attention(q, k, beta, edges, backend=backend)[0].requires_grad


# ---------------------------------------------------------------------------------------------- precision, determinism


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(backend, dtype):
    edges = SortedEdges.from_edge_index(random_graph(20, 400), 20)
    inputs = operands(edges, dtype=dtype)
    actual = outputs_and_gradients(sparse.attention, inputs, edges, backend=backend)
    assert all(x.dtype == dtype for x in actual)
    expected = outputs_and_gradients(kernels_reference.attention, in_double(inputs), edges)
    assert_relative(actual, expected, 2 * torch.finfo(dtype).eps)  # one rounding of the result, one of the cotangent
    assert sparse.log_partition(*inputs, edges, backend=backend).dtype == torch.float32


def test_repeated_runs_and_any_number_of_threads_agree_bit_for_bit(monkeypatch):
    monkeypatch.setattr(pytest.importorskip("et.core.kernels.numba.runtime"), "SMALLEST_TASK", 16)
    edges = SortedEdges.from_edge_index(star(3000), 3001)
    inputs = operands(edges, width=16)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 1, 2, 5):
            torch.set_num_threads(count)
            results.append(outputs_and_gradients(sparse.attention, inputs, edges, backend="numba")[:4])
            torch.set_num_threads(1)
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_hubs_are_summed_without_loss():
    edges = SortedEdges.from_edge_index(star(100_000), 100_001)
    q, k, beta = operands(edges, heads=1, width=4)
    q, k = (x.detach().abs().requires_grad_() for x in (q, k))  # all of one sign: sums that do not cancel

    def loss_and_gradients(function, inputs: list[Tensor], **options) -> list[Tensor]:
        u, v = function(*inputs, edges, **options)
        return [u, v, *torch.autograd.grad(u.sum() + v.sum(), inputs)]

    actual = loss_and_gradients(sparse.attention, [q, k, beta], backend="numba")
    assert_relative(actual, loss_and_gradients(kernels_reference.attention, in_double([q, k, beta])), 5e-6)


class LargestTensor(TorchDispatchMode):
    """Watches how many numbers the largest tensor made under it holds."""

    largest = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.numel())
        return result


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_no_tensor_of_edges_times_width_is_made(backend, monkeypatch):
    monkeypatch.setitem(chunked.CHUNK_ELEMENTS, "cpu", 4096)
    edges = SortedEdges.from_edge_index(random_graph(50, 20_000), 50)
    inputs = operands(edges, heads=2, width=16)
    with LargestTensor() as watch:
        outputs_and_gradients(sparse.attention, inputs, edges, backend=backend)
    largest = {"reference": 20_000 * 2 * 16, "torch": 20_000, "numba": 20_000}[backend]
    assert watch.largest == largest if backend == "reference" else watch.largest <= largest


# ------------------------------------------------------------------------------------------------------------ dispatch


def test_backend_comes_from_argument_environment_and_device(monkeypatch):
    x = torch.zeros(1)
    monkeypatch.delenv("ET_SPARSE_BACKEND", raising=False)
    assert sparse.select_backend(None, x).__name__ == "et.core.kernels.numba.sparse"
    assert sparse.select_backend(None, x.to("meta")) is kernels_reference
    monkeypatch.setenv("ET_SPARSE_BACKEND", "reference")
    assert sparse.select_backend(None, x) is kernels_reference
    assert sparse.select_backend("torch", x) is chunked
    with pytest.raises(ValueError, match="choose one of"):
        sparse.select_backend("fortran", x)
    with pytest.raises(ValueError, match="on the CPU"):
        sparse.select_backend("numba", x.to("meta"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="on a GPU"):
        sparse.select_backend("triton", x)


def test_all_works_without_numba(monkeypatch):
    monkeypatch.delenv("ET_SPARSE_BACKEND", raising=False)
    for module in ("sparse", "attention", "orders", "runtime", "weighted"):
        monkeypatch.delitem(sys.modules, f"et.core.kernels.numba.{module}", raising=False)
        monkeypatch.delattr(f"et.core.kernels.numba.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)  # makes every import of it fail
    edges = SortedEdges.from_edge_index(random_graph(9, 50), 9)
    inputs = operands(edges)
    assert sparse.select_backend(None, inputs[0]) is chunked
    actual = outputs_and_gradients(sparse.attention, inputs, edges)
    assert_relative(actual, outputs_and_gradients(kernels_reference.attention, in_double(inputs), edges))
    with pytest.raises(ValueError, match="cannot be imported"):
        sparse.select_backend("numba", inputs[0])


class AttentionPerItem(torch.utils.data.Dataset):
    def __init__(self, edges: SortedEdges):
        self.edges = edges

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return sparse.attention(*(x.detach() for x in operands(self.edges, seed=index)), self.edges)[0]


def test_kernels_run_in_forked_workers():
    dataset = AttentionPerItem(SortedEdges.from_edge_index(random_graph(30, 500), 30))
    here = torch.stack([dataset[index] for index in range(4)])  # compiles, and starts threads if it ever does
    loader = torch.utils.data.DataLoader(dataset, num_workers=2, multiprocessing_context="fork", timeout=60)
    assert torch.equal(torch.cat(list(loader)), here)


@pytest.mark.parametrize("nodes", [3, 4, 6])
@pytest.mark.parametrize("kind", ["plain", "weighted"])
def test_tokens_that_the_edges_are_not_about_are_refused(kind, nodes):
    """The compiled kernels would read beyond them, or give an answer."""
    edge_index = torch.tensor([[0, 1, 1, 4], [1, 0, 4, 1]])
    topology = EdgeTopology(edge_index, 5) if kind == "plain" else WeightedEdges(edge_index, torch.ones(4, 2), 5)
    q, beta = torch.randn(nodes, 2, 3), torch.ones(2)
    for call in (topology.attend, topology.log_partition):
        with pytest.raises(ValueError, match="the edges join 5 nodes"):
            call(q, q, beta)
        with pytest.raises(ValueError, match="a batch of graphs is one graph"):
            call(torch.randn(2, 5, 2, 3), torch.randn(2, 5, 2, 3), beta)
        call(torch.randn(5, 2, 3), torch.randn(5, 2, 3), beta)
