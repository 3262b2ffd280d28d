"""Triton kernels of attention between all pairs: interpreted against the reference, and on a GPU if there is one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from et.core.kernels import dense as kernels_dense

triton_dense = pytest.importorskip("et.core.kernels.triton_dense")

BOUNDS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # of the largest value; about 2 eps
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: nothing is interpreted")


def outputs_and_gradients(function, qk: Tensor, beta: Tensor, self_attention: bool, **options) -> list[Tensor]:
    qk, beta = qk.detach().requires_grad_(), beta.detach().requires_grad_()
    out = function(qk, beta, self_attention, **options)
    weight = torch.randn(qk.shape, generator=torch.Generator().manual_seed(1)).to(qk)
    return [out, *torch.autograd.grad(out, (qk, beta), weight)]


def errors(shape: tuple[int, ...], dtype: torch.dtype, self_attention: bool, device: str = "cpu") -> list[float]:
    """Largest error of output and gradients against float64, as a part of the largest value (of 1 at least)."""
    generator = torch.Generator().manual_seed(0)
    qk = torch.randn(shape, generator=generator).to(device, dtype)
    beta = (0.1 + 0.2 * torch.rand(shape[-2], generator=generator)).to(device)
    found = outputs_and_gradients(triton_dense.attention, qk, beta, self_attention)
    expected = outputs_and_gradients(kernels_dense.plain_attention, qk.double(), beta.double(), self_attention)
    assert [x.dtype for x in found] == [dtype, dtype, torch.float32]
    return [((x - y).abs().max() / y.abs().max().clamp(min=1)).item() for x, y in zip(found, expected, strict=True)]


def assert_within_bounds(found: list[float], dtype: torch.dtype) -> None:
    """The gradient of beta, one sum over all pairs whose terms cancel, may be four times as far off."""
    *of_tokens, of_beta = found
    assert max(*of_tokens, of_beta / 4) < BOUNDS[dtype]


@on_cpu
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("self_attention", [False, True])
@pytest.mark.parametrize("shape", [(2, 2, 2, 2, 16), (65, 2, 1, 24)], ids=["two", "one_over"])
def test_both_terms_and_all_gradients_agree_with_the_reference(shape, self_attention, dtype):
    """Two tokens; one token more than a block holds, without samples and with a padded width."""
    assert_within_bounds(errors(shape, dtype, self_attention), dtype)


@on_cpu
@pytest.mark.parametrize(
    ("dtype", "self_attention"), [(torch.float32, False), (torch.float16, True), (torch.bfloat16, False)]
)
def test_several_blocks_samples_and_heads_agree_with_the_reference(dtype, self_attention):
    assert_within_bounds(errors((2, 130, 2, 2, 16), dtype, self_attention), dtype)


@on_cpu
def test_one_token_attends_to_itself():
    qk = torch.randn(3, 1, 2, 2, 16)
    torch.testing.assert_close(triton_dense.attention(qk, torch.ones(2), True), qk.flip(-3))


@on_cpu
def test_gradients_can_be_differentiated():
    torch.manual_seed(0)
    qk, beta = torch.randn(5, 2, 1, 16, requires_grad=True), torch.ones(1, requires_grad=True)

    def second(function) -> Tensor:
        (first,) = torch.autograd.grad(function(qk, beta).square().sum(), qk, create_graph=True)
        return torch.autograd.grad(first.square().sum(), qk)[0]

    found, expected = second(triton_dense.attention), second(kernels_dense.plain_attention)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@on_cpu
def test_the_environment_chooses_who_computes(monkeypatch):
    torch.manual_seed(0)
    qk, beta, calls = torch.randn(6, 2, 1, 16), torch.ones(1), []
    whole = triton_dense.attention
    monkeypatch.setattr(triton_dense, "attention", lambda *inputs: calls.append(1) or whole(*inputs))
    expected = kernels_dense.attention(qk, beta)
    assert not calls
    monkeypatch.setenv("ET_DENSE_BACKEND", "triton")
    torch.testing.assert_close(kernels_dense.attention(qk, beta), expected)
    assert calls
    torch.testing.assert_close(kernels_dense.attention(qk, beta, store_attention=False), expected)
    assert len(calls) == 1
    for backend, operand in (("triton", qk.double()), ("triton", qk[..., :8]), ("flex", qk), ("cuda", qk)):
        monkeypatch.setenv("ET_DENSE_BACKEND", backend)
        with pytest.raises(ValueError, match="ET_DENSE_BACKEND"):
            kernels_dense.attention(operand, beta)


def test_half_precision_on_a_gpu_has_triton_even_where_it_is_to_be_deterministic(monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    monkeypatch.delenv("ET_DENSE_BACKEND", raising=False)
    on_gpu = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, shape=(1, 8, 2, 2, 64), numel=lambda: 2048)
    assert kernels_dense.fused_kernel(on_gpu) is triton_dense.attention
    for dtype in (torch.float32, torch.float64):  # in parts
        on_gpu.dtype = dtype
        assert kernels_dense.fused_kernel(on_gpu) is None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(
    ("shape", "self_attention"), [((65, 2, 1, 24), True), ((2, 197, 2, 12, 64), False), ((1, 1000, 2, 2, 128), False)]
)
def test_on_a_gpu_they_agree_and_repeat_bit_for_bit(shape, self_attention, dtype, monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)  # nothing is tuned
    assert_within_bounds(errors(shape, dtype, self_attention, "cuda"), dtype)
    qk, beta = torch.randn(shape, device="cuda").to(dtype), torch.full(shape[-2:-1], 0.2, device="cuda")
    first, second = (outputs_and_gradients(triton_dense.attention, qk, beta, self_attention) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
