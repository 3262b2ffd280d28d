"""Stratified splits of nodes into training, validation and test part, reproducible from a seed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from et.anomaly.graph import UNLABELLED
from et.utils.errors import UserError

# The one random state and the 33 : 67 of the authors' released code.
RELEASED_STATE, RELEASED_TEST_SHARE = 2, 0.67
FEW_ANOMALIES = 10  # in a part, below which its scores come with a warning


@dataclass(frozen=True)
class Split:
    """Sorted node ids of each part, (n,) int64; the parts are disjoint."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray

    def parts(self, num_nodes: int) -> np.ndarray:
        """Part of each node, (N,) uint8: 0 none, 1 train, 2 validation, 3 test."""
        parts = np.zeros(num_nodes, dtype=np.uint8)
        for code, ids in enumerate((self.train, self.val, self.test), start=1):
            parts[ids] = code
        return parts

    def sha256(self, num_nodes: int) -> str:
        return hashlib.sha256(self.parts(num_nodes)).hexdigest()

    def save(self, path: Path, num_nodes: int) -> None:
        """Write :meth:`parts` as .npz."""
        np.savez_compressed(path, parts=self.parts(num_nodes))


def make_split(labels: np.ndarray, train_ratio: float, seed: int, protocol: str) -> Split:
    """Split the labelled nodes so that every part has the same share of anomalies.

    Args:
        labels: Labels 0, 1 or -1, (N,); nodes with -1 are in no part.
        train_ratio: Share of the labelled nodes for training. The rest is split 1 : 2 into validation and test.
        seed: Seed of the split under ``held_out``.
        protocol: ``held_out``: another split for every seed, as in the paper's text. ``released``: one split for all
            seeds, whose rest is split 33 : 67, as in the released code.

    Raises:
        UserError: The ratio is not between 0 and 1, or a part would lack one of the two classes.
    """
    from sklearn.model_selection import train_test_split

    if not isinstance(train_ratio, int | float) or not 0 < train_ratio < 1:
        raise UserError(f"data.train_ratio must be a number between 0 and 1, not {train_ratio!r}")
    state, test_share = (RELEASED_STATE, RELEASED_TEST_SHARE) if protocol == "released" else (seed, 2 / 3)
    nodes = np.flatnonzero(labels != UNLABELLED)
    try:
        train, rest = train_test_split(nodes, stratify=labels[nodes], train_size=train_ratio, random_state=state)
        val, test = train_test_split(rest, stratify=labels[rest], test_size=test_share, random_state=state)
    except ValueError as error:
        raise UserError(
            f"{len(nodes)} labelled nodes with {int((labels[nodes] == 1).sum())} anomalies cannot be split at "
            f"train_ratio {train_ratio} into three parts of both classes ({error}): change data.train_ratio"
        ) from error
    split = Split(np.sort(train), np.sort(val), np.sort(test))
    for name, ids in vars(split).items():
        for label, kind in ((0, "benign"), (1, "anomalous")):
            if not (labels[ids] == label).any():
                raise UserError(
                    f"the {name} part holds no {kind} node at train_ratio {train_ratio}: "
                    "raise data.train_ratio, or label more nodes of that class"
                )
    return split


def few_anomalies(labels: np.ndarray, split: Split) -> list[str]:
    """Warnings for a validation or test part with so few anomalies that its scores are unreliable."""
    found = []
    for part, uses in (("val", "threshold and epoch are chosen"), ("test", "test/auc and test/f1_macro are measured")):
        count = int((labels[getattr(split, part)] == 1).sum())
        if count < FEW_ANOMALIES:
            found.append(
                f"{uses} on {count} anomalous node{'s' * (count != 1)}: each of them is worth {1 / count:.2f} of an AUC"
            )
    return found
