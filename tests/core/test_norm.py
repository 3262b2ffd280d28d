import torch

from et.core import EnergyLayerNorm


def test_golden_values(core):
    norm = EnergyLayerNorm(core["x"].shape[1]).double()
    with torch.no_grad():
        norm.gamma.copy_(core["gamma"])
        norm.delta.copy_(core["delta"])
    torch.testing.assert_close(norm(core["x"]), core["g"], rtol=0, atol=1e-10)
    torch.testing.assert_close(norm.lagrangian(core["x"]).sum(), core["lagrangian"], rtol=1e-12, atol=0)


def test_is_the_gradient_of_its_lagrangian():
    norm = EnergyLayerNorm(7).double()
    torch.nn.init.normal_(norm.delta)
    torch.nn.init.constant_(norm.gamma, 0.7)
    x = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(norm.lagrangian(x).sum(), x)
    torch.testing.assert_close(gradient, norm(x), rtol=0, atol=1e-12)


def test_hessian_of_the_lagrangian_is_positive_semidefinite():
    norm = EnergyLayerNorm(6).double()
    for _ in range(10):
        hessian = torch.autograd.functional.hessian(lambda x: norm.lagrangian(x), torch.randn(6, dtype=torch.float64))
        assert torch.linalg.eigvalsh(hessian).min() > -1e-12


def test_without_bias_there_is_no_delta():
    norm = EnergyLayerNorm(5, bias=False)
    assert norm.delta is None and sum(p.numel() for p in norm.parameters()) == 1
    x = torch.randn(3, 5)
    torch.testing.assert_close(norm(x), torch.nn.functional.layer_norm(x, (5,)))


def test_is_computed_in_float32_and_returned_in_the_dtype_of_its_input():
    x = torch.randn(4, 6).bfloat16()
    for norm in (EnergyLayerNorm(6), EnergyLayerNorm(6).bfloat16()):
        torch.testing.assert_close(norm(x), EnergyLayerNorm(6)(x.float()).bfloat16(), rtol=0, atol=0)
        torch.testing.assert_close(norm(x.float()), EnergyLayerNorm(6)(x.float()))
    with torch.autocast("cpu", torch.bfloat16):
        assert EnergyLayerNorm(6)(x).dtype == torch.float32
