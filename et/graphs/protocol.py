"""Which graphs are trained on and which are scored: the honest protocol and the released code's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from et.errors import UserError

# The released loop averages accuracies over batches of this size, whatever the size in training.
RELEASED_BATCH = 64
# A class of so many graphs is in every part if there are as many folds: ten remain beside the test part's one.
ENOUGH = 11


def held_out_split(labels: Tensor, fold: int, folds: int, seed: int) -> dict[str, Tensor]:
    """Stratified cross-validation with an inner validation part.

    The test part is fold number ``fold`` of ``folds``; of the rest a stratified tenth validates (it chooses the epoch)
    and nine tenths train. The same seed gives the same folds to every model.

    Args:
        labels: (G,) int64 classes.

    Returns:
        Graph numbers, ascending, of ``train``, ``val`` and ``test``.

    Raises:
        UserError: ``fold`` is not one of the folds, a class is absent from a part, or there are no classes.
    """
    from sklearn.model_selection import StratifiedKFold, train_test_split

    if labels.is_floating_point():
        raise UserError("the targets are real numbers: folds are stratified by class, and regression needs a split")
    if folds < 2:
        raise UserError(f"data.folds={folds}: cross-validation needs two folds or more")
    if not 0 <= fold < folds:
        raise UserError(f"data.fold={fold} is not one of the {folds} folds 0 .. {folds - 1}")
    labels = labels.numpy()
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < folds:
        rare = classes[counts.argmin()]
        raise UserError(
            f"class {rare} has {counts.min()} graphs, fewer than the {folds} folds: it would be absent from some; "
            f"{_advice(counts.min())}"
        )
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    rest, test = list(splitter.split(np.zeros(len(labels)), labels))[fold]
    try:
        train, val = train_test_split(rest, test_size=0.1, stratify=labels[rest], random_state=seed)
    except ValueError as error:
        raise UserError(
            f"a tenth of {len(rest)} graphs cannot hold all {len(classes)} classes ({error}); {_advice(counts.min())}"
        ) from error
    parts = {"train": train, "val": val, "test": test}
    for name, part in parts.items():
        absent = np.setdiff1d(classes, labels[part])
        if len(absent):
            count = counts[classes == absent[0]].item()
            raise UserError(
                f"class {absent[0]} has {count} graphs, too few with data.folds={folds}: none of them is in the part "
                f"{name!r} of fold {fold}; {_advice(counts.min())}"
            )
    return {name: torch.from_numpy(np.sort(part)) for name, part in parts.items()}


def _advice(smallest: int) -> str:
    """What to do about a class that is absent from a part, given the size of the smallest class."""
    if smallest >= ENOUGH:
        return f"set data.folds={smallest}"
    return (
        f"{ENOUGH} graphs of each class are surely enough: leave the smallest class out, join it with another, or give "
        "train, val and test yourself (data=graph_list)"
    )


def everything_split(num_graphs: int) -> dict[str, Tensor]:
    """The released protocol's parts: all graphs train, none chooses the epoch, and all are looked at again."""
    every = torch.arange(num_graphs)
    return {"train": every, "val": every[:0], "test": every}


def released_fold(num_graphs: int, seed: int, folds: int = 10) -> list[Tensor]:
    """What one repetition of the released 10-fold loop scores: for each fold the numbers of the graphs it looks at.

    With the larger part of a fold in ascending order and n a tenth of its length, these are the first n graphs of the
    larger part (nearly always the first of the data set) and the first n of the smaller.
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

    An accuracy is a mean over batches of 64, a repetition a mean over its ten folds.

    Args:
        correct: Takes graph indices (n,) and says which of them the model classifies correctly, (n,) bool. It is asked
            again in every batch, because noise and padding make the released model's answer vary.
        num_graphs: Number of graphs of the data set.
        seed: Seed of the repetition's folds.
    """
    folds = []
    for graphs in released_fold(num_graphs, seed):
        batches = [correct(batch).float().mean() for batch in graphs.split(RELEASED_BATCH)]
        folds.append(torch.stack(batches).mean())
    return torch.stack(folds).mean().item()
