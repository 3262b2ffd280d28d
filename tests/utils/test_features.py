"""Features keep what float32 would lose until they are standardised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from et.utils.errors import UserError
from et.utils.features import as_features, piecewise_linear, standardize_columns, to_float32


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64, np.uint8, np.bool_])
def test_ordinary_features_are_float32(dtype):
    values = np.random.default_rng(0).normal(size=(50, 3)) * 5
    assert as_features(values.astype(dtype)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.uint32])
def test_a_column_of_timestamps_keeps_its_seconds(dtype):
    seconds = (1.7e9 + np.arange(200.0) % 40)[:, None].astype(dtype)
    features = as_features(seconds)
    assert np.array_equal(features.numpy(), seconds.astype(np.float64))
    constant = torch.zeros(1, dtype=torch.bool)
    scaled = standardize_columns(features, features, correction=0, constant=constant)
    expected = torch.from_numpy(np.arange(200.0) % 40)
    assert torch.allclose(scaled[:, 0], (expected - expected.mean()) / expected.std(correction=0), atol=1e-6)


def test_a_constant_is_no_loss_and_a_loss_is_told():
    constant = torch.full((10, 1), 0.1, dtype=torch.float64)
    assert as_features(constant).dtype == torch.float32
    moving = torch.cat([torch.rand(10, 1).double(), 1.7e9 + torch.arange(10.0).double()[:, None]], dim=1)
    with pytest.warns(UserWarning, match="mine: float32 loses the variation of feature columns 1 beside"):
        assert to_float32(as_features(moving), "mine").dtype == torch.float32


def test_gradients_end_here():
    assert not as_features(torch.rand(3, 2, requires_grad=True)).requires_grad


@pytest.mark.parametrize("dtype", [">f8", ">f4", ">i4", ">u2", np.longdouble])
def test_arrays_of_types_that_torch_lacks_are_read(dtype):
    values = np.arange(6).reshape(3, 2)
    assert torch.equal(as_features(values.astype(dtype)), as_features(values))


def test_complex_numbers_are_refused():
    for values in (np.ones((2, 2)) * 1j, torch.ones(2, 2) * 1j):
        with pytest.raises(UserError, match="complex numbers"):
            as_features(values)


def test_a_piecewise_linear_encoding_fills_the_bins_below_a_value():
    known = torch.arange(9.0)[:, None]
    encoded = piecewise_linear(torch.tensor([[-1.0], [0.0], [3.0], [8.0], [9.0]]), known, bins=4)
    expected = [[0, 0, 0, 0], [0, 0, 0, 0], [1, 0.5, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    torch.testing.assert_close(encoded, torch.tensor(expected))


def test_a_piecewise_linear_encoding_is_monotone_and_finite_with_equal_values():
    known = torch.tensor([[0.0, 5.0]] * 7 + [[1.0, 5.0], [2.0, 5.0]])
    encoded = piecewise_linear(torch.linspace(-1, 3, 50)[:, None].expand(-1, 2), known, bins=4)
    assert torch.isfinite(encoded).all() and (encoded.diff(dim=0) >= 0).all()
    assert (encoded.unflatten(1, (4, 2))[..., 1] == 0).all()  # a constant column has no bins
    assert encoded[-1].sum() > encoded[0].sum()
