"""The Triton kernels: in the interpreter against the reference, compiled for a GPU, and on one where there is one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from et.core import sparse
from et.core.csr import SortedEdges
from et.core.kernels import reference as kernels_reference
from tests.core.sparse_cases import GRAPHS, assert_relative, in_double, operands, outputs_and_gradients, random_graph

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


COMPILE_ALL = """
import triton
from triton.backends.compiler import GPUTarget
from et.core.kernels import triton as kernels

types = {"query": "*i32", "key": "*i32", "source": "*i32", "position": "*i32", "start": "*i64"}
types |= {"edges": "i32", "heads": "i32", "width": "i32"}
constants = {"BLOCK_E": kernels.BLOCK, "BLOCK_Y": 16, "PERMUTED": True, "SUMS": True}
for name, kernel in vars(kernels).items():
    if name.endswith("_kernel"):
        given = {key: constants[key] for key in kernel.arg_names if key in constants}
        signature = {key: "constexpr" if key in given else types.get(key, "*fp32") for key in kernel.arg_names}
        source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=given)
        print(name, len(triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]))
"""


def test_triton_kernels_compile_for_a_gpu_that_is_not_here():
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", COMPILE_ALL], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 7


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
