"""Metrics of anomaly detection: macro-F1 at a threshold, and measures without a threshold."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Candidates for the decision threshold: 0.05, 0.10 ... 0.95.
THRESHOLDS = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)


def macro_f1(probabilities: Tensor, labels: Tensor, thresholds: Tensor = THRESHOLDS) -> Tensor:
    """Unweighted mean of the F1 of both classes; a node is predicted anomalous if its probability exceeds the
    threshold.

    Args:
        probabilities: Probabilities of an anomaly, (n,).
        labels: Labels 0 or 1, (n,).
        thresholds: Ascending thresholds, (k,).

    Returns:
        One value per threshold, (k,) float64. A class that is neither present nor predicted has F1 0.
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
    """Lowest of :data:`THRESHOLDS` with the best macro-F1, and that macro-F1."""
    scores = macro_f1(probabilities, labels)
    index = int(scores.argmax())
    return float(THRESHOLDS[index]), float(scores[index])


def measure(log_odds: Tensor, labels: Tensor, threshold: float) -> dict[str, float]:
    """All metrics of one part: f1_macro, auc, average_precision, recall_at_k (k is the number of anomalies), in 0 .. 1.

    Args:
        log_odds: Log-odds of an anomaly, (n,).
        labels: Labels 0 or 1, (n,); both classes are present.
        threshold: Probability threshold of f1_macro.
    """
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    at = torch.tensor([threshold], dtype=torch.float64)
    ranks = relative_ranks(log_odds)
    return {
        "f1_macro": float(macro_f1(log_odds.sigmoid(), labels, at)[0]),
        "auc": float(binary_auroc(ranks, labels)),
        "average_precision": float(binary_average_precision(ranks, labels)),
        "recall_at_k": recall_at_k(ranks, labels),
    }


def recall_at_k(scores: Tensor, labels: Tensor) -> float:
    """Share of anomalies among the k nodes with the highest scores, k the number of anomalies.

    Of nodes that tie for the last places every choice counts the same: the order of the nodes does not matter.

    Args:
        scores: Scores, (n,).
        labels: Labels 0 or 1, (n,). Without a 1 the result is NaN.
    """
    anomalous = labels == 1
    k = int(anomalous.sum())
    if k == 0:
        return math.nan
    last = scores.topk(k).values[-1]
    above, tied = scores > last, scores == last
    share = anomalous[tied].double().mean()
    return float((anomalous[above].sum() + (k - above.sum()) * share) / k)


def constant_answers(labels: Tensor) -> dict[str, tuple[str, float]]:
    """Macro-F1 of the better constant answer, and the AUC of any constant one.

    Args:
        labels: Labels 0 or 1, (n,).

    Returns:
        What the answer is, and its score, by the name of the validation metric.
    """
    share = float((labels == 1).double().mean())
    normal, anomalous = (1 - share) / (2 - share), share / (1 + share)
    name = "all nodes benign" if normal >= anomalous else "all nodes anomalous"
    return {"val/f1_macro": (name, max(normal, anomalous)), "val/auc": ("chance", 0.5)}


def relative_ranks(scores: Tensor) -> Tensor:
    """Ranks of ``scores`` (n,) scaled to 0 .. 1, equal for ties; (n,) float64.

    Measures without a threshold depend on the ranks alone. Probabilities would not do: in float32 all log-odds of at
    least 17 become 1, and a badly calibrated network reaches that easily.
    """
    place = scores.unique(return_inverse=True)[1].double()
    return place / place.max().clamp(min=1)
