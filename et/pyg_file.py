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
    except pickle.UnpicklingError as error:
        unknown = re.search(r"Unsupported (?:global|class|operand).*?\b([\w.]+\.[\w.]+)", str(error))
        what = unknown[1] if unknown else "something else"
        raise UserError(
            f"{path} holds {what}: only tensors, numbers, texts and torch_geometric's Data are read"
        ) from error
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {reason}): is it whole?") from error
