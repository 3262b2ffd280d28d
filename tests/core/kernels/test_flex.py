"""Two passes of a fused attention: the formula everywhere, FlexAttention's numbers forward here and whole on a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from et.core import EnergyTransformerBlock, descend
from et.core.kernels import dense as kernels_dense
from et.core.kernels import flex as kernels_flex

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention has gradients on a GPU only")


def plain_attend(q, k, v, bias, diagonal):
    """``kernels_flex.flex_attend`` on whole attention matrices, differentiable on any device."""
    scores = q @ k.mT if bias is None else q @ k.mT + bias[..., None, :]
    if not diagonal:
        scores = scores.masked_fill(torch.eye(scores.shape[-1], dtype=torch.bool, device=q.device), -torch.inf)
    total = torch.logsumexp(scores, dim=-1)
    return (scores - total[..., None]).exp() @ v, total


@pytest.fixture(autouse=True)
def any_order():
    """Without deterministic=true, which a training in another test may have left on."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("self_attention", (False, True))
@pytest.mark.parametrize("shape", ((7, 2, 3, 4), (2, 6, 2, 3, 4)))
def test_two_passes_are_both_terms_with_their_gradients(shape, self_attention):
    torch.manual_seed(0)
    qk = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    beta = (0.5 + torch.rand(3, dtype=torch.float64)).requires_grad_()
    found = kernels_flex.attention(qk, beta, self_attention, plain_attend)
    expected = kernels_dense.plain_attention(qk, beta, self_attention)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weight = torch.randn(shape, dtype=torch.float64)
    gradients = [torch.autograd.grad((x * weight).sum(), (qk, beta)) for x in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


@pytest.mark.parametrize("self_attention", (False, True))
def test_flex_attention_forward_agrees_on_the_cpu(self_attention):
    torch.manual_seed(0)
    qk, beta = torch.randn(2, 20, 2, 3, 16), torch.rand(3)
    with torch.no_grad():
        found = kernels_flex.attention(qk, beta, self_attention, kernels_flex.flex_attend)
    torch.testing.assert_close(found, kernels_dense.plain_attention(qk, beta, self_attention), rtol=1e-5, atol=1e-5)


def test_cpus_double_precision_and_determinism_are_not_for_flex_attention(monkeypatch):
    assert not kernels_flex.suits(torch.zeros(1, 8, 2, 2, 64))
    monkeypatch.setattr(kernels_flex, "_has_flex", lambda: True)
    on_gpu = SimpleNamespace(is_cuda=True, dtype=torch.float32, shape=(1, 8, 2, 2, 64))
    assert kernels_flex.suits(on_gpu)
    on_gpu.dtype = torch.float64
    assert not kernels_flex.suits(on_gpu)
    on_gpu.dtype = torch.bfloat16
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert not kernels_flex.suits(on_gpu)


def test_where_it_suits_it_computes_a_descent_unless_maps_are_asked_for(monkeypatch):
    """The choice as on a GPU, with its two passes in plain operations."""
    torch.manual_seed(0)
    block, x = EnergyTransformerBlock(8, 2, 4, 16, attention_init_std=0.5).double(), torch.randn(2, 6, 8).double()
    plain = descend(block, x, 3, 0.1).x
    wanted = torch.autograd.grad(plain.square().sum(), tuple(block.parameters()))
    calls = []
    monkeypatch.setattr(kernels_flex, "suits", lambda qk: True)
    attend = plain_attend
    monkeypatch.setattr(kernels_flex, "compiled_attend", lambda *inputs: calls.append(1) or attend(*inputs))
    fused = descend(block, x, 3, 0.1).x
    assert calls
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(torch.autograd.grad(fused.square().sum(), tuple(block.parameters())), wanted)
    calls.clear()
    block.attention.all_pairs.store_attention = False
    torch.testing.assert_close(descend(block, x, 3, 0.1).x, plain)
    assert not calls


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_on_a_gpu_it_is_chosen_and_agrees(dtype, monkeypatch):
    torch.manual_seed(0)
    qk = torch.randn(2, 200, 2, 4, 64, device="cuda", dtype=dtype, requires_grad=True)
    beta = torch.full((4,), 0.125, device="cuda")
    if dtype == torch.bfloat16:  # in half precision Triton's kernels come first
        monkeypatch.setenv("ET_DENSE_BACKEND", "flex")
    calls = []
    whole = kernels_flex.attention
    monkeypatch.setattr(kernels_flex, "attention", lambda *arguments: calls.append(1) or whole(*arguments))
    found, expected = kernels_dense.attention(qk, beta), kernels_dense.plain_attention(qk, beta)
    assert calls and not kernels_flex.suits(qk.double())
    gradients = [torch.autograd.grad(x.float().square().sum(), qk)[0] for x in (found, expected)]
    for mine, reference in ((found, expected), gradients):
        assert (mine - reference).float().norm() < (
            2e-2 if dtype == torch.bfloat16 else 2e-3
        ) * reference.float().norm()
