"""Files that hold torch_geometric graphs, read without executing anything in them."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from et.errors import UserError


def load_pyg(path: Path) -> Any:
    """What ``torch.save`` wrote, of tensors, plain containers and torch_geometric's Data.

    Raises:
        UserError: the file is damaged, or would have to execute code to be read.
    """
    from torch_geometric.data.data import Data, DataEdgeAttr, DataTensorAttr
    from torch_geometric.data.storage import GlobalStorage

    try:
        with torch.serialization.safe_globals([Data, DataEdgeAttr, DataTensorAttr, GlobalStorage]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        foreign = re.search(r"[Uu]nsupported (?:global: )?GLOBAL ([\w.]+)", str(error))
        if foreign:
            reason = f"it holds {foreign[1]}, and only tensors, numbers, texts and torch_geometric's Data are read"
        elif isinstance(error, pickle.UnpicklingError):  # torch's text is advice about trust
            reason = "it is no whole file of torch.save"
        else:
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}: is it whole?"
        raise UserError(f"{path} cannot be read: {reason}") from error
