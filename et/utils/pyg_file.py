"""Reading files of torch_geometric graphs without executing anything in them."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from et.utils.errors import UserError


def load_pyg(path: Path) -> Any:
    """Load a file of ``torch.save`` with tensors, plain containers and torch_geometric's Data.

    Tensors become dense and do not require gradients. Data of torch_geometric 1.x, which stored attributes differently,
    becomes current Data.

    Raises:
        UserError: The file is damaged, or would have to execute code to be read.
    """
    from torch_geometric.data.data import Data, DataEdgeAttr, DataTensorAttr
    from torch_geometric.data.storage import GlobalStorage

    try:
        with torch.serialization.safe_globals([Data, DataEdgeAttr, DataTensorAttr, GlobalStorage]):
            return plain(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        foreign = re.search(r"[Uu]nsupported (?:global: )?GLOBAL ([\w.]+)", str(error))
        if foreign:
            reason = f"it holds {foreign[1]}, and only tensors, numbers, texts and torch_geometric's Data are read"
        elif isinstance(error, pickle.UnpicklingError):  # torch's text is advice about trust
            reason = "it is not a complete file of torch.save"
        else:
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}: is it whole?"
        raise UserError(f"{path} cannot be read: {reason}") from error


def plain(value: Any) -> Any:
    """``value`` with dense tensors that require no gradient, at any depth of lists, dictionaries and Data."""
    from torch_geometric.data import Data

    if isinstance(value, torch.Tensor):
        value = value.detach()
        return value if value.layout == torch.strided else value.to_dense()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Data):
        return Data.from_dict({key: plain(item) for key, item in attributes(value).items()})
    return value


def attributes(data: Any) -> dict[str, Any]:
    """Fields of a Data by name; for torch_geometric 1.x, which has no store, from the object itself."""
    if "_store" in data.__dict__:
        return data.to_dict()
    held = {key: value for key, value in data.__dict__.items() if value is not None and not key.startswith("__")}
    nodes = data.__dict__.get("__num_nodes__")
    return held if nodes is None else {**held, "num_nodes": nodes}
