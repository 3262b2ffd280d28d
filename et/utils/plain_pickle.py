"""Reading pickled data sets without executing anything in them."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, BinaryIO

import torch

from et.utils.errors import UserError

# Constructors of tensors, arrays and containers; none of them executes code.
PLAIN = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
}


class PlainUnpickler(pickle.Unpickler):
    """Unpickler of tensors, arrays and containers of them.

    Raises:
        UserError: From ``load``, if the file holds anything else.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):  # a pickle in the pickle
            return lambda content: torch.load(io.BytesIO(content), weights_only=True)
        if (module, name) in PLAIN:
            return super().find_class(module, name)
        raise UserError(f"the file holds {module}.{name}, which is not data: it is not read. Download it again")


def load_plain(file: BinaryIO) -> Any:
    """Load a pickle of tensors, arrays and containers; nothing in it is executed."""
    return PlainUnpickler(file).load()


@contextmanager
def only_data() -> Iterator[None]:
    """Context in which torch_geometric's data sets read data only.

    By default they unpickle ZINC's raw files, and any .pt file that holds more than tensors, without restrictions.
    """
    from torch_geometric.data.data import Data, DataEdgeAttr, DataTensorAttr
    from torch_geometric.data.storage import GlobalStorage
    from torch_geometric.datasets import zinc
    from torch_geometric.io import fs

    former = fs.torch_load, zinc.pickle
    fs.torch_load = lambda path, map_location=None: torch.load(path, map_location, weights_only=True)
    zinc.pickle = SimpleNamespace(load=load_plain)
    try:
        with torch.serialization.safe_globals([Data, DataEdgeAttr, DataTensorAttr, GlobalStorage]):
            yield
    finally:
        fs.torch_load, zinc.pickle = former
