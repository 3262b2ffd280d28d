"""Checkpoints that Flax wrote: msgpack trees of arrays, read without executing anything in them.

Image and graph models of the authors share this form, and the task families do not import each other.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from et.utils.errors import UserError

DTYPES = {
    "float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16,
    "int64": torch.int64, "int32": torch.int32, "int8": torch.int8, "uint32": torch.uint32, "uint8": torch.uint8,
    "bool": torch.bool,
}  # fmt: skip
ARRAY, SCALAR = 1, 3  # msgpack extension types of flax.serialization


def read_flax(path: str | Path) -> dict[str, Tensor]:
    """Parameters of a checkpoint by their path, such as ``decoder/kernel``.

    Args:
        path: File of ``flax.serialization.to_bytes`` or ``flax.training.checkpoints.save_checkpoint``: parameters, or a
            training state with them below ``params``. Or a folder that holds such a file under the name ``checkpoint``.

    Raises:
        UserError: The file is absent or damaged, is a pickle, keeps its arrays elsewhere, or msgpack is not installed.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "checkpoint").is_file():
            raise UserError(
                f"{path} is not a msgpack checkpoint (a folder of Orbax, an array to a file?): restore it "
                "with Orbax and write flax.serialization.to_bytes(params) to a file"
            )
        path = path / "checkpoint"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    refuse_pickle(path, content)
    tree = _unpack(path, content)
    while isinstance(tree, dict) and "params" in tree:
        tree = tree["params"]
    if not isinstance(tree, dict):
        raise UserError(f"{path} is not a Flax checkpoint: it holds no tree of parameters")
    arrays = _flat(tree)
    for name, value in arrays.items():
        if not isinstance(value, Tensor):
            elsewhere = isinstance(value, str) and value.startswith("PLACEHOLDER")
            reason = "is kept in a file of its own, which is not read" if elsewhere else "is not an array"
            raise UserError(f"{path} is not a plain Flax checkpoint: {name} {reason}")
    return arrays


def take(arrays: dict[str, Tensor], names: dict[str, str], path: str | Path, kind: str) -> dict[str, Tensor]:
    """The arrays under the names that the values of ``names`` have in the file, by its keys.

    Raises:
        UserError: One is missing, or there are others, which the model of ``kind`` has no place for.
    """
    missing = [name for name in names.values() if name not in arrays]
    if missing:
        raise UserError(f"{path} is not a checkpoint of {kind}: it lacks {', '.join(missing)}")
    others = sorted(set(arrays) - set(names.values()))
    if others:
        raise UserError(f"{path} is not a checkpoint of {kind}: it has {', '.join(others)} in addition")
    return {key: arrays[name] for key, name in names.items()}


def refuse_pickle(path: Path, content: bytes) -> None:
    """Raise UserError if a file starts as pickles do (a msgpack tree would be empty there)."""
    if content[:1] == b"\x80" and content[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise UserError(f"{path} is a pickle, which may execute code when it is read: it is not read")


def _unpack(path: Path, content: bytes) -> Any:
    try:
        import msgpack
    except ImportError as error:
        raise UserError(f"{path} is read with msgpack, which is not installed: pip install msgpack") from error
    try:
        return msgpack.unpackb(content, ext_hook=_array, raw=False, strict_map_key=False)
    except UserError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # msgpack reports damage in many ways
        raise UserError(f"{path} is a damaged Flax checkpoint ({type(error).__name__}): download it again") from error


def _array(code: int, content: bytes) -> Tensor:
    """An extension of Flax: (shape, dtype, bytes in C order), for arrays and numpy's scalars alike."""
    import msgpack

    if code not in (ARRAY, SCALAR):
        raise UserError(f"it holds values of msgpack's extension type {code}, which are not arrays")
    shape, dtype, values = msgpack.unpackb(content, raw=False)
    if dtype not in DTYPES:
        raise UserError(f"it holds an array of {dtype}; {', '.join(DTYPES)} are read")
    if not prod(shape):
        return torch.empty(shape, dtype=DTYPES[dtype])
    return torch.frombuffer(bytearray(values), dtype=DTYPES[dtype]).reshape(shape)


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= _flat(value, f"{name}/") if isinstance(value, dict) else {name: value}
    return found
