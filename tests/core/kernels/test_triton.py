"""The Triton kernels: in the interpreter against the reference, compiled for a GPU, and on one where there is one."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch

from et.core import sparse
from et.core.csr import SortedEdges
from et.core.kernels import reference as kernels_reference
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

TINY = {  # the interpreter takes about 10 ms a row, head and kernel
    "multigraph": (random_graph(4, 170), 4),
    "isolated_nodes": (random_graph(4, 9) + 1, 6),
    "one_node_self_loop": GRAPHS["one_node_self_loop"],
    "one_node_no_edge": GRAPHS["one_node_no_edge"],
    "no_node": GRAPHS["no_node"],
}


@pytest.fixture
def triton_runs() -> None:
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: the tests that need one hold the compiled kernels to the reference")


@pytest.mark.parametrize("clamp", [None, 0.5])
@pytest.mark.parametrize("name", TINY)
def test_triton_kernels_agree_with_the_reference(triton_runs, name, clamp):
    edges = SortedEdges.from_edge_index(*TINY[name])
    inputs = operands(edges, heads=2)
    actual = outputs_and_gradients(sparse.attention, inputs, edges, clamp, "triton")
    assert_relative(actual, outputs_and_gradients(kernels_reference.attention, in_double(inputs), edges, clamp))


@pytest.mark.parametrize("clamp", [math.inf, 0.5])
@pytest.mark.parametrize("name", ["multigraph", "isolated_nodes"])
def test_blocks_of_rows_with_shared_heads_agree_with_the_reference(triton_runs, name, clamp):
    kernels = sparse.select_backend("triton", torch.empty(0))
    assert_blocks_agree(kernels, SortedEdges.from_edge_index(*TINY[name]), 3, clamp, torch.float64)


@pytest.mark.parametrize("split", [1024, 2])
@pytest.mark.parametrize("clamp", [None, 0.5])
def test_nan_is_kept(triton_runs, monkeypatch, clamp, split):
    monkeypatch.setattr("et.core.kernels.triton_runtime.SPLIT", split)
    assert_nan_is_kept("triton", SortedEdges.from_edge_index(random_graph(4, 9), 4), clamp, heads=1)


@pytest.mark.parametrize("to_keys", [False, True])
def test_triton_primitives_agree_with_the_reference(triton_runs, to_keys):
    edges = SortedEdges.from_edge_index(*TINY["multigraph"])
    q, k, beta = operands(edges, heads=2, dtype=torch.float64)
    weight = torch.randn(170, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    for name, inputs, arguments in [
        ("edge_aggregate", [weight, k], (to_keys,)),
        *([("segment_logsumexp", [weight], ()), ("log_partition", [q, k, beta], ())] if to_keys else []),
    ]:
        actual = outputs_and_gradients(getattr(sparse, name), inputs, edges, *arguments, backend="triton")
        expected = outputs_and_gradients(getattr(kernels_reference, name), inputs, edges, *arguments)
        assert_relative(actual, expected, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("split", [4, 1024])
def test_hubs_are_cut_into_pieces_and_half_precision_sums_in_float32(triton_runs, monkeypatch, dtype, split):
    """A hub as query and as key, nodes without edges, and repeated edges; pieces of 4 edges, and whole rows."""
    from et.core.kernels import triton_runtime

    monkeypatch.setattr(triton_runtime, "SPLIT", split)
    edges = SortedEdges.from_edge_index(torch.cat([star(9), star(9)[:, :5], random_graph(4, 6)], 1) + 1, 12)
    assert all((triton_runtime.pieces_of(edges, by_key).slots > 2) == (split == 4) for by_key in (False, True))
    inputs = operands(edges, heads=1 if dtype in (torch.float32, torch.float16) else 2, dtype=dtype)
    inputs[2] = inputs[2].detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    actual = outputs_and_gradients(sparse.attention, inputs, edges, backend="triton")
    assert [x.dtype for x in actual] == [dtype] * 4 + [inputs[2].dtype]
    expected = outputs_and_gradients(kernels_reference.attention, in_double(inputs), edges)
    # Operands are exact and sums are not rounded: what is left is the rounding of results and of the terms' gradients.
    assert_relative(actual, expected, {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, torch.finfo(dtype).eps))
    assert not actual[0][[0, 11]].any() and not actual[1][[0, 11]].any()


def test_pieces_of_primitives_add_up(triton_runs, monkeypatch):
    from et.core.kernels import triton_runtime

    monkeypatch.setattr(triton_runtime, "SPLIT", 3)
    edges = SortedEdges.from_edge_index(star(7), 9)
    weight = torch.randn(14, 2, dtype=torch.float64)
    weight[0] = -torch.inf
    for name, arguments in (("segment_logsumexp", (weight,)), ("edge_aggregate", (weight.exp(), weight[:9, :, None]))):
        found = getattr(sparse, name)(*arguments, edges, backend="triton")
        torch.testing.assert_close(found, getattr(kernels_reference, name)(*arguments, edges), rtol=0, atol=1e-12)


def test_pieces_cover_each_edge_once():
    pytest.importorskip("triton")
    from et.core.kernels.triton_runtime import cut_rows

    degree = torch.tensor([0, 5, 10, 11, 0, 1, 25])
    start = torch.cat([torch.zeros(1, dtype=torch.int64), degree.cumsum(0)])
    pieces = cut_rows(start, 5)
    high = torch.minimum(pieces.low + 5, start[pieces.row.long() + 1])
    assert (high - pieces.low).tolist() == [0, 5, 5, 5, 5, 5, 1, 0, 1, 5, 5, 5, 5, 5]
    assert pieces.slot.tolist() == [-1, -1, 0, 1, 2, 3, 4, -1, -1, 5, 6, 7, 8, 9] and pieces.slots == 10
    assert pieces.cut.tolist() == [2, 3, 6] and pieces.offsets.tolist() == [0, 2, 5, 10]
    assert pieces.sums(torch.ones(10, 2)).tolist() == [[2, 2], [3, 3], [5, 5]]


def test_block_sizes_are_measured_only_where_the_order_of_sums_is_free(monkeypatch):
    """Tuned on a GPU; the first configuration under deterministic algorithms."""
    triton = pytest.importorskip("triton")
    from et.core.kernels import triton_runtime

    launched = []

    class Kernel(triton.JITFunction):
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *arguments, **constants: launched.append((self.name, constants))

    monkeypatch.setattr(triton_runtime, "_autotuned", lambda kernel, configs, key: Kernel("tuned"))
    configs = [triton.Config({"BLOCK": b}, num_warps=2) for b in (16, 32)]
    before = torch.are_deterministic_algorithms_enabled()
    for deterministic in (True, False):
        torch.use_deterministic_algorithms(deterministic)
        try:
            triton_runtime.launch(Kernel("plain"), lambda meta: (1,), configs=configs, key=("n",), OTHER=1)
        finally:
            torch.use_deterministic_algorithms(before)
    assert launched[0] == ("plain", {"OTHER": 1, "BLOCK": 16, "num_warps": 2, "num_stages": configs[0].num_stages})
    assert launched[1] == ("tuned", {"OTHER": 1})


COMPILE_ALL = """
import triton
from triton.backends.compiler import GPUTarget
from et.core.kernels import triton_dense, triton_edges
from et.core.kernels import triton as kernels_triton

INDEX = {"query": "*i32", "key": "*i32", "source": "*i32", "position": "*i32", "row_of": "*i32", "slot_of": "*i32"}
INDEX |= {"start": "*i64", "low_of": "*i64"} | dict.fromkeys(("edges", "tokens", "heads", "width", "split"), "i32")
INDEX |= {"key_heads": "i32", "query_heads": "i32", "clamp": "fp32"}
OPERANDS = ("q", "k", "u", "v", "values", "gu", "gv", "gq", "gk", "qk", "out", "grad", "grad_qk")
CONSTANTS = {"BLOCK_Y": 64, "PERMUTED": True, "SUMS": True, "SELF": False, "DOT": "tf32"}
SHARED = 227 * 1024  # bytes that a program may have on sm_90


def compile(kernel, dtype, capability, config):
    constants = {key: value for key, value in (CONSTANTS | config.kwargs).items() if key in kernel.arg_names}
    types = {key: INDEX.get(key, f"*{dtype}" if key in OPERANDS else "*fp32") for key in kernel.arg_names}
    signature = types | dict.fromkeys(constants, "constexpr")
    aligned = [n for n, key in enumerate(kernel.arg_names) if key == "width" or signature[key].startswith("*")]
    attributes = {(n,): [["tt.divisibility", 16]] for n in aligned}  # as a launch finds them
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


for module in (triton_edges, triton_dense):
    for name, kernel in vars(module).items():
        if name.endswith("_kernel"):
            configs = kernels_triton.TUNED
            if module is triton_dense:
                configs = module.BACKWARD if "gradient" in name else module.FORWARD
            for dtype, capability in (("fp32", 80), ("bf16", 90)):
                compiled = compile(kernel, dtype, capability, configs[0])
                assert compiled.metadata.shared <= SHARED, (name, compiled.metadata.shared)
                print(name, dtype, capability, compiled.metadata.shared, len(compiled.asm["cubin"]))
"""


@pytest.mark.slow
def test_triton_kernels_compile_for_gpus_that_are_not_here():
    """To machine code, for sm_80 and sm_90, with the block sizes that are taken where nothing is measured."""
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", COMPILE_ALL], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 2 * (7 + 4)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(
    ("operation", "options"), [("attention", {}), ("attention", {"clamp": 0.5}), ("log_partition", {})]
)
def test_gpu_backends_agree_with_the_reference(backend, operation, options):
    for edge_index, num_nodes in GRAPHS.values():
        edges = SortedEdges.from_edge_index(edge_index, num_nodes)
        inputs = operands(edges, width=64)
        expected = outputs_and_gradients(getattr(kernels_reference, operation), in_double(inputs), edges, **options)
        q, k, beta = (x.detach().cuda().requires_grad_() for x in inputs)
        result = getattr(sparse, operation)(q, k, beta, edges.to("cuda"), **options, backend=backend)
        outputs = result if isinstance(result, tuple) else (result,)
        generator = torch.Generator().manual_seed(1)  # the cotangents of outputs_and_gradients
        cotangents = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in outputs]
        actual = [*outputs, *torch.autograd.grad(outputs, (q, k, beta), cotangents)]
        assert_relative([x.cpu() for x in actual], expected)
