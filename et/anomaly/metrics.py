"""How well scores tell anomalous nodes from benign ones: macro-F1 at a threshold, and measures without one."""

from __future__ import annotations

import torch
from torch import Tensor

# Candidates for the decision threshold: 0.05, 0.10 ... 0.95.
THRESHOLDS = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)


def macro_f1(probabilities: Tensor, labels: Tensor, thresholds: Tensor = THRESHOLDS) -> Tensor:
    """Unweighted mean of the F1 of both classes, deciding for an anomaly where probability > threshold.

    Args:
        probabilities: (n,) of being anomalous.
        labels: (n,) 0 or 1.
        thresholds: (k,) ascending.

    Returns:
        (k,) float64, one value a threshold. A class that is neither there nor predicted has F1 0.
    """
    anomalous = labels == 1
    # A node in bin b exceeds the first b thresholds, so a reversed running sum counts who exceeds each of them.
    bins = torch.bucketize(probabilities.double(), thresholds.to(probabilities.device))
    k = len(thresholds)
    hits = torch.bincount(bins[anomalous], minlength=k + 1).flip(0).cumsum(0).flip(0)[1:].double()
    false_alarms = torch.bincount(bins[~anomalous], minlength=k + 1).flip(0).cumsum(0).flip(0)[1:].double()
    misses, passes = anomalous.sum() - hits, (~anomalous).sum() - false_alarms
    wrong = false_alarms + misses
    return 0.5 * (_f1(hits, wrong) + _f1(passes, wrong))


def _f1(right: Tensor, wrong: Tensor) -> Tensor:
    return 2 * right / (2 * right + wrong).clamp(min=1)


def best_threshold(probabilities: Tensor, labels: Tensor) -> tuple[float, float]:
    """The lowest of :data:`THRESHOLDS` with the best macro-F1, and that macro-F1."""
    scores = macro_f1(probabilities, labels)
    index = int(scores.argmax())
    return float(THRESHOLDS[index]), float(scores[index])


def measure(log_odds: Tensor, labels: Tensor, threshold: float) -> dict[str, float]:
    """All measures of a part: f1_macro, auc, average_precision, recall_at_k (k: the number of anomalies), each in 0..1.

    Args:
        log_odds: (n,) of being anomalous.
        labels: (n,) 0 or 1, both there.
        threshold: of the probability, for f1_macro.
    """
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    at = torch.tensor([threshold], dtype=torch.float64)
    ranks = relative_ranks(log_odds)
    top = ranks.topk(int((labels == 1).sum())).indices
    return {
        "f1_macro": float(macro_f1(log_odds.sigmoid(), labels, at)[0]),
        "auc": float(binary_auroc(ranks, labels)),
        "average_precision": float(binary_average_precision(ranks, labels)),
        "recall_at_k": float((labels[top] == 1).double().mean()),
    }


def relative_ranks(scores: Tensor) -> Tensor:
    """The order of ``scores`` (n,) as numbers from 0 to 1, equal where they are; (n,) float64.

    Measures without a threshold see nothing else of scores. Probabilities would not do: in float32 all log-odds from 17
    on are 1, which a badly calibrated network easily has.
    """
    place = scores.unique(return_inverse=True)[1].double()
    return place / place.max().clamp(min=1)
