"""Node and edge features of graphs: one-hot types and standardisation."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from et.graphs.batch import GraphBatch
from et.utils.errors import UserError
from et.utils.features import standardize_columns


def encode_types(graphs: GraphBatch, num_node_types: int | None, num_edge_types: int | None) -> GraphBatch:
    """Graphs with integer node and edge types as one-hot columns; edges without features stay without.

    Args:
        graphs: Graphs with one column of node types and, if any, one of edge types.
        num_node_types, num_edge_types: Numbers of types. If None, those of the data.

    Raises:
        UserError: A type is out of range or not an integer, or there are several columns.
    """
    encoded = {}
    for key, values, count in (("x", graphs.x, num_node_types), ("edge_attr", graphs.edge_attr, num_edge_types)):
        if values is None:
            continue
        types = values.long()
        if types.shape[1] != 1 or not torch.equal(types.to(values), values):
            raise UserError(f"data.one_hot=true needs one column of whole numbers, and {key} is not that: leave it out")
        count = int(types.max()) + 1 if count is None else count
        if int(types.min()) < 0 or int(types.max()) >= count:
            raise UserError(
                f"{key} holds types {int(types.min())} .. {int(types.max())}, the configuration has {count}"
            )
        encoded[key] = torch.nn.functional.one_hot(types[:, 0], count).float()
    return replace(graphs, **encoded)


def warn_of_zero_edges(graphs: GraphBatch) -> None:
    """Warn about edges with features of zeros only: their weights in the convolution are 0 (eq. 24)."""
    if graphs.edge_attr is None or not graphs.edge_attr.shape[1]:
        return
    zero = int((graphs.edge_attr == 0).all(1).sum())
    if zero:
        warnings.warn(
            f"{zero} of {len(graphs.edge_attr)} edges have features of zeros only, and the Energy Transformer does not "
            "see such edges (eq. 24): count types from 1, append a column of ones, or leave edge_attr out",
            stacklevel=2,
        )


def standardized(graphs: GraphBatch, train: Tensor) -> GraphBatch:
    """Graphs whose node features have mean 0 and standard deviation 1 over the nodes of the training graphs.

    Columns of zeros and ones (one-hot labels) are unchanged, and constant columns are only shifted.

    Args:
        graphs: All graphs.
        train: Indices of the training graphs, (n,).
    """
    seen = graphs.select(train).x.double()
    one_hot = ((graphs.x == 0) | (graphs.x == 1)).all(0)
    resolution = 1e-6 if graphs.x.dtype == torch.float32 else 1e-14
    constant = seen.std(0, correction=min(1, len(seen) - 1)) <= resolution * seen.mean(0).abs()
    scaled = standardize_columns(graphs.x, seen, correction=1, constant=constant)
    return replace(graphs, x=torch.where(one_hot, graphs.x.float(), scaled.float()))
