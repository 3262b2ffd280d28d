"""Attention in parts: the same numbers as with whole matrices, whatever the parts, and no whole matrix stored."""

from __future__ import annotations

import itertools

import pytest
import torch

from et.core import EnergyTransformerBlock, descend
from et.core.kernels import dense as kernels_dense

SHAPES = ((7, 2, 3, 4), (2, 7, 2, 3, 4), (2, 2, 9, 2, 3, 5))


def inputs(shape, dtype=torch.float64):
    torch.manual_seed(0)
    qk = torch.randn(shape, dtype=dtype, requires_grad=True)
    beta = (0.5 + torch.rand(shape[-2], dtype=dtype)).requires_grad_()
    return qk, beta, torch.randn(shape, dtype=dtype)


@pytest.fixture(params=(1 << 20, 100, 30))
def part_size(request, monkeypatch):
    """All matrices at once; a few; some rows of one."""
    monkeypatch.setattr(kernels_dense, "PART", request.param)
    monkeypatch.setattr(kernels_dense, "MIN_ROWS", 2)
    return request.param


@pytest.mark.parametrize(("shape", "self_attention", "store_attention"), itertools.product(SHAPES, (0, 1), (0, 1)))
def test_parts_agree_with_whole_matrices(shape, self_attention, store_attention, part_size):
    qk, beta, weight = inputs(shape)
    found = kernels_dense.attention(qk, beta, bool(self_attention), bool(store_attention))
    expected = kernels_dense.plain_attention(qk, beta, bool(self_attention))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad((x * weight).sum(), (qk, beta)) for x in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)
    with torch.no_grad():
        arguments = *qk.unbind(-3), beta, bool(self_attention)
        by_parts = kernels_dense.log_partition(*arguments)
    torch.testing.assert_close(by_parts, kernels_dense.log_partition(*arguments), rtol=0, atol=1e-12)


@pytest.mark.parametrize("store_attention", (False, True))
def test_first_and_second_derivatives(store_attention):
    qk, beta, _ = inputs((3, 2, 2, 2))
    function = lambda qk, beta: kernels_dense.attention(qk, beta, False, store_attention)  # noqa: E731
    assert torch.autograd.gradcheck(function, (qk, beta))
    assert torch.autograd.gradgradcheck(function, (qk, beta))


def test_bfloat16_stays_near_float32():
    qk, beta, weight = inputs((2, 33, 2, 3, 8), torch.float32)
    exact = kernels_dense.attention(qk, beta)
    rough = kernels_dense.attention(qk.bfloat16(), beta, store_attention=False)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, rtol=0.03, atol=0.03)
    gradients = [torch.autograd.grad((x.float() * weight).sum(), qk)[0] for x in (exact, rough)]
    assert (gradients[1] - gradients[0]).norm() < 0.02 * gradients[0].norm()


def test_matrices_are_stored_only_where_they_are_small(monkeypatch):
    qk, beta, _ = inputs((2, 6, 2, 3, 4))

    def numbers_kept(**arguments) -> list[int]:
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            kernels_dense.attention(qk, beta, **arguments)
        return kept

    size = 2 * 3 * 6 * 6
    assert size in numbers_kept() and size not in numbers_kept(store_attention=False)
    monkeypatch.setattr(kernels_dense, "KEPT", size - 1)
    assert size not in numbers_kept() and size in numbers_kept(store_attention=True)


def test_no_tensor_is_as_large_as_a_map(monkeypatch):
    """Neither forward nor backward, nor the recorded energies, ever make N x N numbers at once."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for x in torch.utils._pytree.tree_leaves(out):
                if isinstance(x, torch.Tensor):
                    self.numbers = max(self.numbers, x.untyped_storage().nbytes() // x.element_size())
            return out

    monkeypatch.setattr(kernels_dense, "PART", 4096)
    block = EnergyTransformerBlock(8, 2, 4, 16, store_attention=False)
    with Largest() as largest:
        descend(block, torch.randn(1, 512, 8), 2, 0.1, record=True).x.sum().backward()
    assert 4096 <= largest.numbers <= 16 * 1024 < 512 * 512


@pytest.mark.parametrize("watcher", ("func", "forward_mode", "autocast"))
def test_whoever_looks_at_the_operations_gets_plain_ones(watcher):
    qk, beta, _ = inputs((4, 2, 2, 3))
    tangent = torch.randn_like(qk)
    expected = torch.autograd.functional.jvp(lambda x: kernels_dense.plain_attention(x, beta), qk, tangent)[1]
    if watcher == "func":
        found = torch.func.jvp(lambda x: kernels_dense.attention(x, beta), (qk,), (tangent,))[1]
    elif watcher == "forward_mode":
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(qk.detach(), tangent)
            found = torch.autograd.forward_ad.unpack_dual(kernels_dense.attention(dual, beta.detach())).tangent
    else:
        with torch.autocast("cpu", torch.bfloat16):
            assert kernels_dense.attention(qk.float(), beta.float()).grad_fn.name() != "_AttentionBackward"
        return
    torch.testing.assert_close(found, expected)


def test_bfloat16_rounds_the_gradient_of_beta_no_more_than_plain_operations():
    """The row sums that the softmax's gradient subtracts are rounded; queries and beta get back what that takes."""

    def gradients(function, qk, beta, cotangent):
        qk, beta = qk.clone().requires_grad_(), beta.clone().requires_grad_()
        return torch.autograd.grad(function(qk, beta), (qk, beta), cotangent)[1].double()

    ours, plain, generator = 0.0, 0.0, torch.Generator().manual_seed(0)
    for _ in range(300):  # the largest error of many draws shows it, not the usual one
        qk, cotangent = torch.randn(2, 2, 9, 2, 2, 16, generator=generator).bfloat16()
        beta = torch.tensor([0.2, 0.3])
        exact = gradients(kernels_dense.plain_attention, qk.double(), beta.double(), cotangent.double())
        for_all = [gradients(f, qk, beta, cotangent) for f in (kernels_dense.attention, kernels_dense.plain_attention)]
        ours, plain = (
            max(worst, ((found - exact).abs().max() / exact.abs().max().clamp(min=1)).item())
            for worst, found in zip((ours, plain), for_all, strict=True)
        )
    assert ours < 1.25 * plain
