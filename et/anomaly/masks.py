"""Splits that a graph's file brings along: boolean masks of training, validation and test nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from et.anomaly.graph import UNLABELLED
from et.anomaly.splits import GADBENCH_TRIALS, Split, check_split
from et.utils.errors import UserError
from et.utils.features import as_tensor
from et.utils.pyg_file import load_pyg

PARTS = ("train", "val", "test")


def masked_split(path: Path, labels: np.ndarray, seed: int, semi_supervised: bool = False) -> Split:
    """The split that the file ``path`` holds.

    Keys are ``train_mask``, ``val_mask`` and ``test_mask``, (N,) or (N, k), as a torch_geometric Data has them, or
    ``train_masks`` ..., (N, k) or (k, N), as the files of GADBench and of heterophilous-graphs have them. One mask is
    the split of every seed; of k masks, column ``seed`` is taken. GADBench's k is 20: the first ten are fully
    supervised, the others semi-supervised.

    Args:
        path: .npz, .mat, .pt or .pth file, or a dgl graph file.
        labels: (N,) 0, 1 or -1; unlabelled nodes are left out of every part.
        seed: Which column, if there are several.
        semi_supervised: Take columns 10 to 19 of 20 instead of 0 to 9.

    Raises:
        UserError: Masks are missing, of another length, not boolean or overlap; no such column; a part without a class.
    """
    found = _read_masks(path)
    parts = []
    for part in PARTS:
        key = next((key for key in _keys_of(part) if found.get(key) is not None), None)
        if key is None:
            have = ", ".join(sorted(key for key in found if "mask" in key)) or "none"
            raise UserError(f"{path} lacks {part}_mask, which data.split=masks takes; of masks it has {have}")
        mask = _column(found[key], len(labels), seed, semi_supervised, f"{key} of {path}")
        parts.append(np.flatnonzero(mask & (labels != UNLABELLED)))
    for first, second in ((0, 1), (0, 2), (1, 2)):
        shared = np.intersect1d(parts[first], parts[second])
        if len(shared):
            raise UserError(
                f"{path}: {len(shared)} nodes are in both the {PARTS[first]} and the {PARTS[second]} part, "
                f"for example node {shared[0]}: a node belongs to one part at most"
            )
    return check_split(Split(*parts), labels, f" that is labelled: look at the masks of {path}")


def _keys_of(part: str) -> tuple[str, str]:
    """Keys of a part's masks, in order: GADBench keeps an official ``train_mask`` beside its own ``train_masks``."""
    return f"{part}_masks", f"{part}_mask"


def _column(values: Any, num_nodes: int, seed: int, semi_supervised: bool, what: str) -> np.ndarray:
    """(N,) bool out of one or several masks."""
    try:
        mask = as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{what} is no array of true and false ({error})") from error
    other = mask[(mask != 0) & (mask != 1)]
    if len(other):
        raise UserError(
            f"{what} must hold true and false, or 0 and 1, but holds {other[0].item()}: node ids are no mask"
        )
    mask = np.squeeze(mask.bool().numpy())
    if mask.ndim == 2 and mask.shape[0] != num_nodes:
        mask = mask.T
    if mask.ndim not in (1, 2) or mask.shape[0] != num_nodes:
        raise UserError(f"{what} is {mask.shape}, but the graph has {num_nodes} nodes")
    both = mask.ndim == 2 and mask.shape[1] == 2 * GADBENCH_TRIALS
    if semi_supervised and not both:
        columns = 1 if mask.ndim == 1 else mask.shape[1]
        raise UserError(f"{what} has {columns} columns; data.semi_supervised=true needs the 20 of GADBench")
    if mask.ndim == 1:
        return mask
    trials = GADBENCH_TRIALS if both else mask.shape[1]
    if not 0 <= seed < trials:
        raise UserError(f"{what} has {trials} splits, seed=0 to seed={trials - 1}, and none for seed={seed}")
    return mask[:, seed + (GADBENCH_TRIALS if semi_supervised else 0)]


def split_masks(path: Path) -> list[str]:
    """The keys of the masks of a file that has one for each part; empty if it lacks one."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            keys = set(file.files)
    elif path.suffix == ".mat":
        from scipy.io import whosmat

        keys = {name for name, _, _ in whosmat(path)}
    else:
        keys = {key for key, value in _read_masks(path).items() if value is not None}
    found = [[key for key in _keys_of(part) if key in keys] for part in PARTS]
    return [keys[0] for keys in found] if all(found) else []


def _read_masks(path: Path) -> dict[str, Any]:
    """What the file holds under keys with "mask".

    Raises:
        UserError: A mask of a .npz file is an array of Python objects.
    """
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            try:
                return {key: file[key] for key in file.files if "mask" in key}
            except ValueError as error:
                raise UserError(f"a mask of {path} holds Python objects: save an array of true and false") from error
    if path.suffix == ".mat":
        from scipy.io import loadmat

        return {key: value for key, value in loadmat(path).items() if "mask" in key}
    if path.suffix in (".pt", ".pth"):
        data = load_pyg(path)
        return {key: data[key] for key in (data if isinstance(data, dict) else data.keys()) if "mask" in key}
    from dgl.data.utils import load_graphs

    return {key: value.numpy() for key, value in load_graphs(str(path))[0][0].ndata.items() if "mask" in key}
