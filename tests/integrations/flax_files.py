"""Files as flax.serialization.to_bytes writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import numpy as np


def write_flax(path: Path, params: dict[str, Any], **beside: Any) -> Path:
    """Write parameters by their path (``decoder/kernel``) below ``params``, and what stands ``beside`` them."""
    tree: dict[str, Any] = {}
    for name, value in params.items():
        *parents, last = name.split("/")
        section = tree
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    path.write_bytes(msgpack.packb({**beside, "params": tree}, default=_extension, strict_types=True))
    return path


def _extension(value: Any) -> msgpack.ExtType:
    """Arrays are extension 1, numpy's scalars 3: (shape, dtype, bytes)."""
    array = np.asarray(value)
    content = msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True)
    return msgpack.ExtType(3 if isinstance(value, np.generic) else 1, content)
