"""Metrics of graph tasks, and those of constant answers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric


class Measures(Metric):
    """Accuracy, mean recall and loss, or mean absolute error, over all batches and processes.

    Args:
        num_classes: Number of classes, or 1 for a regression.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.add_state("count", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("correct", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("loss", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, target: Tensor) -> None:
        """Add outputs (n, outputs) for targets (n,). A prediction beyond the existing classes is wrong."""
        if self.num_classes == 1:
            self.loss += (outputs[:, 0].double() - target).abs().sum()
            self.count += len(target)
        else:
            self.loss += F.cross_entropy(outputs.double(), target, reduction="sum")
            self.count += torch.bincount(target, minlength=self.num_classes)
            right = target[outputs.argmax(-1) == target]
            self.correct += torch.bincount(right, minlength=self.num_classes)

    def compute(self) -> dict[str, float]:
        """``mae``; or ``accuracy``, ``accuracy_weighted`` (over the classes there are) and ``loss``, not smoothed."""
        loss = (self.loss / self.count.sum()).item()
        if self.num_classes == 1:
            return {"mae": loss}
        recall = (self.correct.double() / self.count)[self.count > 0]
        accuracy = (self.correct.sum().double() / self.count.sum()).item()
        return {"accuracy": accuracy, "accuracy_weighted": recall.mean().item(), "loss": loss}


def constant_error(train: Tensor, test: Tensor) -> float:
    """Mean absolute error on the targets ``test`` (m,) of the median of the targets ``train`` (n,)."""
    return (test.double() - train.double().median()).abs().mean().item()


def constant_answers(targets: Tensor) -> dict[str, tuple[str, float]]:
    """Scores of the commonest class (int targets), or of the median (float targets).

    Class and median are those of the validation data, so no constant answer scores better.

    Args:
        targets: Targets of the validation data, (n,).

    Returns:
        What the answer is, and its score, by the name of the validation metric.
    """
    if targets.is_floating_point():
        return {"val/mae": ("a constant", constant_error(targets, targets))}
    counts = targets.unique(return_counts=True)[1]
    return {
        "val/accuracy": ("the commonest class", float(counts.max() / counts.sum())),
        "val/accuracy_weighted": ("one class for all", 1 / len(counts)),
    }
