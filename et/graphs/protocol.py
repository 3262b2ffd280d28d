"""Splits of graph data sets: the held-out protocol and the one of the released code."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import numpy as np
import torch
from torch import Tensor

from et.utils.errors import UserError

# The released loop averages accuracies over batches of this size, whatever the size in training.
RELEASED_BATCH = 64


def held_out_split(labels: Tensor, fold: int, folds: int, seed: int, stratified: bool = True) -> dict[str, Tensor]:
    """Cross-validation split with an inner validation part.

    The test part is fold ``fold`` of ``folds``. A tenth of the remaining graphs chooses the epoch and the others train.
    The same seed gives the same folds to every model.

    Args:
        labels: Classes, (G,) int64.
        fold: Index of the test fold.
        folds: Number of folds.
        seed: Seed of the split.
        stratified: If True, each part has the class proportions of the whole data set. A class with few graphs may be
            missing from the validation part, but not from training and test part. If False, classes are ignored and any
            part may lack one.

    Returns:
        Sorted graph indices of ``train``, ``val`` and ``test``.

    Raises:
        UserError: ``fold`` is out of range, there are too few graphs, or there are no classes.
    """
    from sklearn.model_selection import KFold, StratifiedKFold, train_test_split

    if labels.is_floating_point():
        raise UserError("the targets are real numbers: folds are stratified by class, and regression needs a split")
    if folds < 2:
        raise UserError(f"data.folds={folds}: cross-validation needs two folds or more")
    if not 0 <= fold < folds:
        raise UserError(f"data.fold={fold} is not one of the {folds} folds 0 .. {folds - 1}")
    if len(labels) < max(folds, 3) or len(labels) - ceil(len(labels) / folds) < 2:  # one trains, one validates
        raise UserError(f"{len(labels)} graphs are too few for {folds} folds: set data.folds, or give more graphs")
    labels = labels.numpy()
    if stratified:
        _check_classes(labels, folds)
    splitter = (StratifiedKFold if stratified else KFold)(folds, shuffle=True, random_state=seed)
    rest, test = list(splitter.split(np.zeros(len(labels)), labels))[fold]
    if not stratified:
        train, val = train_test_split(rest, test_size=0.1, random_state=seed)
    else:
        train, val = _stratified_tenth(rest, labels, seed)
    return {name: torch.from_numpy(np.sort(part)) for name, part in (("train", train), ("val", val), ("test", test))}


def _check_classes(labels: np.ndarray, folds: int) -> None:
    """Raise UserError for a class with fewer graphs than folds."""
    classes, counts = np.unique(labels, return_counts=True)
    rare, count = classes[counts.argmin()], counts.min()
    if count >= folds:
        return
    fewer = f"data.folds={count} (or fewer) or " if count >= 2 else ""
    raise UserError(
        f"class {rare} has {count} graphs, fewer than the {folds} folds: it would be absent from some; set {fewer}"
        "data.stratified=false, which draws folds without regard to classes"
    )


def _stratified_tenth(rest: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``rest`` without a stratified tenth, and that tenth. If a class is too small, one graph of each class trains."""
    from sklearn.model_selection import train_test_split

    try:
        return tuple(train_test_split(rest, test_size=0.1, stratify=labels[rest], random_state=seed))
    except ValueError:  # a class with one graph, or more classes than graphs in the tenth
        shuffled = np.random.default_rng(seed).permutation(rest)
        _, first = np.unique(labels[shuffled], return_index=True)
        others = np.delete(shuffled, first)
        count = min(-(-len(rest) // 10), len(others))
        if count == 0:
            raise UserError(
                f"{len(rest)} graphs of {len(first)} classes leave none to validate on: set fewer data.folds, or "
                "data.stratified=false, which draws folds without regard to classes"
            ) from None
        return np.concatenate([shuffled[first], others[count:]]), others[:count]


# Number of graphs from which on every fold of the released loop has graphs to score (:func:`released_fold`).
FEWEST = 12


def everything_split(num_graphs: int) -> dict[str, Tensor]:
    """Split of the released protocol: all graphs train, none validates, and all are tested."""
    every = torch.arange(num_graphs)
    return {"train": every, "val": every[:0], "test": every}


def released_fold(num_graphs: int, seed: int, folds: int = 10) -> list[Tensor]:
    """Graph indices that one repetition of the released 10-fold loop scores, for each fold.

    Let n be a tenth of the larger part of a fold. The scored graphs are the first n of the larger part in ascending
    order (nearly always the first graphs of the data set) and the first n of the smaller part.
    """
    order = np.random.default_rng(seed).permutation(num_graphs)
    looked_at = []
    for smaller in np.array_split(order, folds):
        smaller = np.sort(smaller)
        larger = np.setdiff1d(np.arange(num_graphs), smaller)
        n = int(0.1 * len(larger))
        looked_at.append(torch.from_numpy(np.concatenate([larger[:n], smaller[:n]])))
    return looked_at


def released_accuracy(correct: Callable[[Tensor], Tensor], num_graphs: int, seed: int) -> float:
    """Score of one repetition of the released 10-fold loop, which never refits the model.

    An accuracy is a mean over batches of 64; the score is the mean over ten folds.

    Args:
        correct: Maps graph indices (n,) to whether the model classifies them correctly, (n,) bool. It is called again
            for every batch, because noise and padding make the released model's predictions vary.
        num_graphs: Number of graphs of the data set.
        seed: Seed of the repetition's folds.
    """
    folds = []
    for graphs in released_fold(num_graphs, seed):
        batches = [correct(batch).float().mean() for batch in graphs.split(RELEASED_BATCH)]
        folds.append(torch.stack(batches).mean())
    return torch.stack(folds).mean().item()
