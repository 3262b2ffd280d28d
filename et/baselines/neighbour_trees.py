"""Ensembles of trees on the features of a node and aggregates over its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from et.anomaly.aggregates import AGGREGATES, neighbour_features
from et.anomaly.known_labels import FOLDS, MASKED, check_label_hops, label_features, label_rates, visible_labels
from et.core import EdgeTopology
from et.core.arguments import check_sizes
from et.utils.errors import UserError


class NeighbourTrees(nn.Module):
    """scikit-learn's HistGradientBoosting on [x | mean over neighbours | mean over the neighbours' means].

    There are no parameters to train by gradient: :meth:`fit` grows all trees at once. The trees do not depend on the
    order of the nodes: splits of equal gain are common, and rounding that depends on the order would choose among them.

    Args:
        hops: Number of neighbourhood hops; 0 uses the node's own features only.
        rounds: Number of boosting rounds.
        learning_rate, max_leaf_nodes, min_samples_leaf, l2: Settings of each round.
        balanced: If True, weight both classes equally.
        seed: Seed of the bootstrap samples, and of those that scikit-learn makes the bins of large data from.
        known_labels: Append the log counts of the neighbours with a known label, by class and relation. They are not
            averaged over hops: a node's own label would come back to it over two of them.
        degrees: Append the log number of neighbours in each relation.
        label_hops: With ``known_labels``: 1, or 2 to append :func:`et.anomaly.known_labels.label_rates` as well. Those
            of a training node are made with the labels of its fifth of the training nodes masked.
        bags: Number of such ensembles, each on a bootstrap sample of the training nodes; the score is the mean of their
            log-odds. With 1 there is one, on all training nodes.
    """

    def __init__(
        self,
        hops: int = 2,
        rounds: int = 100,
        learning_rate: float = 0.1,
        max_leaf_nodes: int = 31,
        min_samples_leaf: int = 20,
        l2: float = 0.0,
        balanced: bool = False,
        seed: int = 0,
        known_labels: bool = False,
        degrees: bool = False,
        label_hops: Literal[1, 2] = 1,
        bags: int = 1,
    ):
        super().__init__()
        check_sizes(rounds=rounds, min_samples_leaf=min_samples_leaf, bags=bags)
        check_sizes(minimum=2, max_leaf_nodes=max_leaf_nodes)
        check_sizes(minimum=0, hops=hops)
        self.hops, self.trees, self.aggregate, self.takes_known_labels = hops, None, "mean", known_labels
        self.degrees, self.label_hops = degrees, check_label_hops(label_hops, known_labels)
        self.bags = bags
        self.settings = {
            "max_iter": rounds,
            "learning_rate": learning_rate,
            "max_leaf_nodes": max_leaf_nodes,
            "min_samples_leaf": min_samples_leaf,
            "l2_regularization": l2,
            "class_weight": "balanced" if balanced else None,
            "random_state": seed,
            "early_stopping": False,
        }

    @property
    def fitted(self) -> bool:
        return self.trees is not None

    def inputs(self, features: Tensor, topologies: Sequence[EdgeTopology], known: Tensor | None = None) -> Tensor:
        """Inputs of the trees: :func:`neighbour_features`, and with known labels :func:`label_features`. If ``known``
        (n,) is None, no label is visible.
        """
        inputs = neighbour_features(features, topologies, self.hops, self.aggregate, self.degrees)
        if self.takes_known_labels:
            known = torch.full((len(features),), MASKED, device=features.device) if known is None else known
            inputs = torch.cat([inputs, label_features(known, topologies, self.label_hops).to(features)], dim=1)
        return inputs

    def fit(self, features: Tensor, topologies: Sequence[EdgeTopology], labels: Tensor, train: Tensor) -> None:
        """Grow the trees on the nodes ``train`` (m,); ``labels`` (n,) of other nodes are ignored."""
        known = visible_labels(labels, train) if self.takes_known_labels else None
        inputs, of_train = self.inputs(features, topologies, known)[train].cpu().numpy(), labels[train].cpu().numpy()
        order = np.lexsort((of_train, *inputs.T))
        if self.label_hops == 2:
            fold = order.argsort() % FOLDS  # by the sorted inputs: the order of the nodes decides for equal ones only
            for part in range(FOLDS):
                others = visible_labels(labels, train[torch.from_numpy(fold != part)])
                rates = label_rates(others, topologies)[train].cpu().numpy()
                inputs[fold == part, -rates.shape[1] :] = rates[fold == part]
        self.trees = self.grow(inputs[order], of_train[order])

    def grow(self, inputs: np.ndarray, labels: np.ndarray) -> Any:
        """The ensembles, fitted to inputs (m, F) and labels (m,)."""
        from sklearn.ensemble import HistGradientBoostingClassifier

        # Not by BaggingClassifier: it passes the draws on as weights of the nodes, with which bins take far longer.
        draw, count = np.random.default_rng(self.settings["random_state"]), len(labels)
        samples = [np.arange(count) if self.bags == 1 else draw.integers(count, size=count) for _ in range(self.bags)]
        return [HistGradientBoostingClassifier(**self.settings).fit(inputs[rows], labels[rows]) for rows in samples]

    def forward(
        self,
        features: Tensor,
        topologies: Sequence[EdgeTopology],
        nodes: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Log-odds (n,).

        Raises:
            RuntimeError: :meth:`fit` has not been called.
        """
        if not self.fitted:
            raise RuntimeError("the trees are not fitted: call fit first. A checkpoint does not hold them")
        return torch.from_numpy(self.raw_scores(self.inputs(features, topologies, known).cpu().numpy())).to(features)

    def raw_scores(self, inputs: np.ndarray) -> np.ndarray:
        """Log-odds of (n, F), (n,)."""
        return np.mean([trees.decision_function(inputs) for trees in self.trees], axis=0)


class XGBGraph(NeighbourTrees):
    """XGBoost on neighbour aggregates, with the settings of GADBench's XGBGraph by default.

    Args:
        hops: Number of aggregations.
        aggregate: ``mean``, ``sum`` or ``max`` over the neighbours.
        rounds: Number of boosting rounds.
        learning_rate, max_depth, l2, subsample: XGBoost's eta, max_depth, lambda and subsample.
        booster: ``gbtree`` or ``dart``.
        seed: Of the subsamples.
        known_labels, degrees, label_hops: See :class:`NeighbourTrees`.
    """

    def __init__(
        self,
        hops: int = 2,
        aggregate: str = "mean",
        rounds: int = 100,
        learning_rate: float = 0.3,
        max_depth: int = 6,
        l2: float = 1.0,
        subsample: float = 1.0,
        booster: str = "gbtree",
        seed: int = 0,
        known_labels: bool = False,
        degrees: bool = False,
        label_hops: Literal[1, 2] = 1,
    ):
        super().__init__(hops=hops, known_labels=known_labels, degrees=degrees, label_hops=label_hops)
        check_sizes(rounds=rounds, max_depth=max_depth)
        self.aggregate = check_aggregate(aggregate)
        self.settings = {
            "n_estimators": rounds,
            "learning_rate": learning_rate,
            "max_depth": max_depth,
            "reg_lambda": l2,
            "subsample": subsample,
            "booster": booster,
            "random_state": seed,
            "n_jobs": torch.get_num_threads(),
        }

    def grow(self, inputs: np.ndarray, labels: np.ndarray) -> Any:
        try:
            from xgboost import XGBClassifier
        except ImportError as error:
            raise UserError("XGBGraph needs XGBoost, which is not installed: pip install xgboost-cpu") from error
        return XGBClassifier(**self.settings).fit(inputs, labels, sample_weight=class_weights(labels))

    def raw_scores(self, inputs: np.ndarray) -> np.ndarray:
        return self.trees.predict(inputs, output_margin=True)


class RFGraph(NeighbourTrees):
    """A random forest on neighbour aggregates, with the settings of GADBench's RFGraph by default.

    Args:
        hops, aggregate: As for :class:`XGBGraph`.
        num_trees: Number of trees.
        criterion: ``gini`` or ``entropy``.
        max_samples: Share of the training nodes that each tree sees. If None, as many as there are, with replacement.
        max_features: Features tried at each split: ``sqrt``, ``log2`` or None (all).
        seed: Of the draws.
        known_labels, degrees, label_hops: See :class:`NeighbourTrees`.
    """

    def __init__(
        self,
        hops: int = 2,
        aggregate: str = "mean",
        num_trees: int = 100,
        criterion: str = "gini",
        max_samples: float | None = None,
        max_features: str | None = "sqrt",
        seed: int = 0,
        known_labels: bool = False,
        degrees: bool = False,
        label_hops: Literal[1, 2] = 1,
    ):
        super().__init__(hops=hops, known_labels=known_labels, degrees=degrees, label_hops=label_hops)
        check_sizes(num_trees=num_trees)
        self.aggregate = check_aggregate(aggregate)
        self.settings = {
            "n_estimators": num_trees,
            "criterion": criterion,
            "max_samples": max_samples,
            "max_features": max_features,
            "random_state": seed,
        }

    def grow(self, inputs: np.ndarray, labels: np.ndarray) -> Any:
        from sklearn.ensemble import RandomForestClassifier

        return RandomForestClassifier(**self.settings).fit(inputs, labels, sample_weight=class_weights(labels))

    def raw_scores(self, inputs: np.ndarray) -> np.ndarray:
        """Log-odds of the trees' mean probability; where all trees agree, that of half a tree's vote."""
        smallest = 0.5 / self.settings["n_estimators"]
        probability = self.trees.predict_proba(inputs)[:, 1].clip(smallest, 1 - smallest)
        return np.log(probability / (1 - probability))


def class_weights(labels: np.ndarray) -> np.ndarray:
    """(m,) weights under which both classes weigh the same: 1 for benign nodes, omega for anomalous ones."""
    anomalous = labels == 1
    return np.where(anomalous, (~anomalous).sum() / anomalous.sum(), 1.0)


def check_aggregate(name: str) -> str:
    """``name`` as it is.

    Raises:
        UserError: There is no such aggregate.
    """
    if name not in AGGREGATES:
        raise UserError(f"model.aggregate must be {', '.join(AGGREGATES)}, not {name!r}")
    return name
