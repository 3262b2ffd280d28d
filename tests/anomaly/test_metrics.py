from __future__ import annotations

from itertools import permutations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from et.anomaly.metrics import THRESHOLDS, best_threshold, constant_answers, macro_f1, measure, recall_at_k


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), nodes=st.integers(2, 300), grid=st.booleans())
def test_measures_are_those_of_scikit_learn(seed, nodes, grid):
    rng = np.random.default_rng(seed)
    probabilities = rng.random(nodes)
    if grid:
        probabilities = np.round(probabilities * 20) / 20  # ties, and values that lie on a threshold
    labels = rng.integers(0, 2, nodes)
    labels[:2] = [0, 1]
    p, y = torch.from_numpy(probabilities), torch.from_numpy(labels)
    expected = [
        f1_score(labels, (probabilities > t).astype(int), average="macro", zero_division=0) for t in THRESHOLDS.numpy()
    ]
    found = macro_f1(p, y).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12)
    threshold, score = best_threshold(p, y)
    assert score == found.max() and threshold == THRESHOLDS[int(found.argmax())]
    values = measure(p.logit(), y, 0.349)
    assert np.isclose(values["f1_macro"], f1_score(labels, probabilities > 0.349, average="macro", zero_division=0))
    assert np.isclose(values["auc"], roc_auc_score(labels, probabilities), atol=1e-6)
    assert np.isclose(values["average_precision"], average_precision_score(labels, probabilities), atol=1e-6)


def test_log_odds_whose_probabilities_are_all_one_are_still_told_apart():
    labels = np.array([0, 1] * 50)
    log_odds = np.linspace(-400, 400, 100) + 40 * labels
    values = measure(torch.from_numpy(log_odds).float(), torch.from_numpy(labels), 0.5)
    assert np.isclose(values["auc"], roc_auc_score(labels, log_odds))
    assert np.isclose(values["average_precision"], average_precision_score(labels, log_odds))
    top = np.argsort(-log_odds)[:50]
    assert np.isclose(values["recall_at_k"], labels[top].mean())


def test_recall_at_k_by_hand():
    log_odds = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.1])
    labels = torch.tensor([1, 0, 1, 0, 1])  # the top 3 hold 2 of the 3 anomalies
    assert np.isclose(measure(log_odds, labels, 0.5)["recall_at_k"], 2 / 3)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_recall_at_k_is_the_mean_over_all_orders_of_tied_nodes(seed):
    rng = np.random.default_rng(seed)
    scores, labels = torch.from_numpy(rng.integers(0, 3, 5)), torch.from_numpy(rng.permutation([0, 0, 0, 1, 1]))
    orders = [list(order) for order in permutations(range(5))]
    hits = [labels[sorted(order, key=lambda node: -int(scores[node]))[:2]].double().mean().item() for order in orders]
    assert np.isclose(recall_at_k(scores, labels), np.mean(hits))


def test_a_perfect_and_a_useless_score():
    labels = torch.tensor([0, 0, 0, 1])
    perfect = measure(torch.tensor([-3.0, -2.0, -1.0, 2.0]), labels, 0.5)
    assert all(np.isclose(value, 1) for value in perfect.values())
    constant = measure(torch.full((4,), -1.4), labels, 0.5)
    assert np.isclose(constant["auc"], 0.5) and np.isclose(constant["f1_macro"], 0.5 * 2 * 3 / 7)


def test_the_lowest_of_equally_good_thresholds_is_taken():
    threshold, score = best_threshold(torch.tensor([0.01, 0.99]), torch.tensor([0, 1]))
    assert score == 1 and threshold == THRESHOLDS[0]


def test_the_better_constant_answer_is_that_of_scikit_learn():
    for anomalies in (1, 9):
        labels = torch.tensor([0] * (10 - anomalies) + [1] * anomalies)
        name, score = constant_answers(labels)["val/f1_macro"]
        constant = torch.full((10,), anomalies // 9)
        assert name == ("all nodes benign", "all nodes anomalous")[anomalies // 9]
        assert abs(score - f1_score(labels, constant, average="macro", zero_division=0)) < 1e-12
