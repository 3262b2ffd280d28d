"""Node features: float64 if float32 would lose information, and standardisation in float64."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from et.utils.errors import UserError

WIDER_THAN_FLOAT32 = (torch.float64, torch.int32, torch.int64, torch.uint32, torch.uint64)
# Largest rounding error of a column, as a share of its standard deviation, at which float32 is taken.
TOLERANCE = 1e-3


def as_features(values: np.ndarray | Tensor) -> Tensor:
    """Features in float32, or in float64 if a column's offset is so large that float32 would lose its variation.

    Timestamps are the usual case: seconds since 1970 are 128 s apart in float32.

    Args:
        values: Numbers or booleans, (N, F), dense.

    Raises:
        UserError: They are complex.
    """
    exact = as_tensor(values).detach()
    if exact.is_complex():
        raise UserError("the features are complex numbers: save real ones, such as real and imaginary parts")
    rounded = exact.to(torch.float32)
    if exact.dtype not in WIDER_THAN_FLOAT32 or exact.dim() != 2:
        return rounded
    exact = exact.to(torch.float64)
    if torch.equal(rounded.double(), exact) or not lost_columns(exact, rounded).any():
        return rounded
    return exact


def as_tensor(values: np.ndarray | Tensor) -> Tensor:
    """``values`` as a tensor; arrays of types that torch lacks (other byte orders, long doubles) are converted."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "iufc":
        wide = values.dtype.kind == "f" and values.dtype.itemsize > 8
        values = values.astype(np.float64 if wide else values.dtype.newbyteorder("="), copy=False)
    return torch.as_tensor(values)


def lost_columns(exact: Tensor, rounded: Tensor) -> Tensor:
    """Mask of the columns whose rounding errors are not small relative to their standard deviation, (F,) bool."""
    if not len(exact):
        return torch.zeros(exact.shape[1], dtype=torch.bool)
    varies = exact.amax(0) > exact.amin(0)
    error = (rounded.double() - exact).abs().amax(0)
    return varies & (error > TOLERANCE * exact.std(0, correction=0))


def to_float32(features: Tensor, name: str) -> Tensor:
    """Features in float32 for the model; warns about columns of the data set ``name`` that lose their variation."""
    rounded = features.float()
    if features.dtype == torch.float64:
        lost = lost_columns(features, rounded).nonzero()[:, 0].tolist()
        if lost:
            warnings.warn(
                f"{name}: float32 loses the variation of feature columns {', '.join(map(str, lost[:10]))} beside their "
                "offset; set data.standardize, or subtract the offset in the file",
                stacklevel=2,
            )
    return rounded


def scale_columns(features: Tensor, known: Tensor, scaling: str) -> Tensor:
    """Features scaled column by column, in float32; a constant column becomes 0.

    Args:
        features: Features, (N, F).
        known: Rows that the scale is fitted on, (n, F).
        scaling: ``moments``: to mean 0 and standard deviation 1. ``quantiles``: to the quantiles of a standard normal
            distribution, cut off at 3.
    """
    known = known.double()
    resolution = 1e-12 if features.dtype == torch.float32 else 1e-14  # of the deviation of equal numbers
    varies = known.std(dim=0, correction=0) > resolution * known.mean(dim=0).abs()
    if scaling == "moments":
        return (standardize_columns(features, known, correction=0, constant=~varies) * varies).float()
    from sklearn.preprocessing import QuantileTransformer

    transformer = QuantileTransformer(n_quantiles=min(200, len(known)), output_distribution="normal", subsample=None)
    scaled = transformer.fit(known.numpy()).transform(features.double().numpy())
    return (torch.from_numpy(scaled).clamp(-3, 3) * varies).float()


def standardize_columns(features: Tensor, known: Tensor, correction: int, constant: Tensor) -> Tensor:
    """(features - mean) / deviation in float64; ``constant`` columns are only shifted.

    Args:
        features: Features, (N, F).
        known: Rows for mean and deviation, (n, F).
        correction: Degrees of freedom of the deviation, 0 or 1.
        constant: Mask of the constant columns, (F,) bool.
    """
    known = known.double()
    deviation = known.std(0, correction=min(correction, len(known) - 1))
    return (features.double() - known.mean(0)) / torch.where(constant, torch.ones_like(deviation), deviation)


def piecewise_linear(features: Tensor, known: Tensor, bins: int) -> Tensor:
    """Piecewise linear encoding of each column over its quantiles, (N, F) -> (N, bins F) in float32.

    Entry k of a value is 0 below the k-th bin, 1 above it and linear in it (Gorishniy et al., 2022,
    https://arxiv.org/abs/2203.05556). The bins hold equal shares of the ``known`` values. An entry of a bin without
    width, which equal values make, is 0.

    Args:
        features: Features, (N, F).
        known: Rows that the bins are fitted on, (n, F).
        bins: Number of bins.
    """
    shares = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    # One column at a time: torch.quantile refuses more than 2^24 numbers.
    edges = torch.stack([torch.quantile(column, shares) for column in known.double().T], dim=1)  # (bins + 1, F)
    encoded = torch.empty(len(features), bins, features.shape[1])
    for bin in range(bins):
        width = edges[bin + 1] - edges[bin]
        within = (features.double() - edges[bin]) / torch.where(width > 0, width, torch.inf)
        encoded[:, bin] = within.clamp(0, 1)
    return encoded.flatten(1)
