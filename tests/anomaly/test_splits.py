from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from et.anomaly.splits import make_split
from et.utils.errors import UserError


def labels_with(nodes: int, anomalies: int, unlabelled: int = 0) -> np.ndarray:
    labels = np.zeros(nodes, dtype=np.int64)
    labels[nodes - anomalies :] = 1
    labels[:unlabelled] = -1
    return labels


@settings(max_examples=40, deadline=None)
@given(
    nodes=st.integers(300, 2000),
    share=st.floats(0.05, 0.5),
    ratio=st.floats(0.1, 0.6),
    unlabelled=st.integers(0, 100),
    seed=st.integers(0, 10_000),
    protocol=st.sampled_from(["held_out", "released"]),
)
def test_parts_are_disjoint_complete_and_stratified(nodes, share, ratio, unlabelled, seed, protocol):
    anomalies = int(share * (nodes - unlabelled))
    labels = labels_with(nodes, anomalies, unlabelled)
    split = make_split(labels, ratio, seed, protocol)
    together = np.concatenate([split.train, split.val, split.test])
    assert np.array_equal(np.sort(together), np.arange(unlabelled, nodes))  # each labelled node once, no other
    known = nodes - unlabelled
    assert abs(len(split.train) - ratio * known) <= 1
    test_share = 0.67 if protocol == "released" else 2 / 3
    assert abs(len(split.test) - test_share * (known - len(split.train))) <= 1
    for part in (split.train, split.val, split.test):
        assert abs(labels[part].sum() - anomalies * len(part) / known) <= 2


def test_another_seed_is_another_split_and_the_same_seed_the_same():
    labels = labels_with(1000, 100)
    hashes = [make_split(labels, 0.4, seed, "held_out").sha256(1000) for seed in (0, 1, 0)]
    assert hashes[0] == hashes[2] != hashes[1]


def test_released_has_one_split_for_all_seeds():
    labels = labels_with(1000, 100)
    assert len({make_split(labels, 0.4, seed, "released").sha256(1000) for seed in range(5)}) == 1


def test_released_split_is_that_of_the_released_code():
    """The two calls of the released code, on a list of ids."""
    from sklearn.model_selection import train_test_split

    labels = labels_with(500, 60, unlabelled=100)
    ids = list(range(100, 500))
    train, rest, _, y_rest = train_test_split(
        ids, labels[ids], stratify=labels[ids], train_size=0.4, random_state=2, shuffle=True
    )
    val, test = train_test_split(rest, stratify=y_rest, test_size=0.67, random_state=2, shuffle=True)
    split = make_split(labels, 0.4, 7, "released")
    for found, expected in ((split.train, train), (split.val, val), (split.test, test)):
        assert found.tolist() == sorted(expected)


def test_saved_parts_are_those_of_the_split(tmp_path):
    split = make_split(labels_with(300, 30, unlabelled=20), 0.4, 0, "held_out")
    split.save(tmp_path / "split.npz", 300)
    parts = np.load(tmp_path / "split.npz", allow_pickle=False)["parts"]
    assert np.array_equal(np.flatnonzero(parts == 0), np.arange(20))
    for code, ids in enumerate((split.train, split.val, split.test), start=1):
        assert np.array_equal(np.flatnonzero(parts == code), ids)


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 40, "half"])
def test_a_ratio_that_is_no_number_between_0_and_1_is_an_error(ratio):
    with pytest.raises(UserError, match="train_ratio must be a number between 0 and 1"):
        make_split(labels_with(100, 20), ratio, 0, "held_out")


@pytest.mark.parametrize(("anomalies", "ratio"), [(10, 0.01), (1, 0.4), (0, 0.4), (3, 0.02)])
def test_a_part_without_a_class_is_an_error(anomalies, ratio):
    with pytest.raises(UserError, match=r"train_ratio"):
        make_split(labels_with(1000, anomalies), ratio, 0, "held_out")


def test_the_message_names_the_part_and_the_class():
    with pytest.raises(UserError, match=r"the train part holds no anomalous node at train_ratio 0\.01"):
        make_split(labels_with(1000, 10), 0.01, 0, "held_out")
