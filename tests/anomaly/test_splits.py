from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from et.anomaly.splits import GADBENCH_RATIOS, make_split
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


class TestGADBench:
    """Against its published rules, written out with scikit-learn and NumPy's global generator."""

    @pytest.mark.parametrize(
        ("name", "nodes", "anomalies", "counts"),
        [
            ("reddit", 10984, 366, (4393, 2196, 4395)),
            ("weibo", 8405, 868, (3362, 1681, 3362)),
            ("tolokers", 11758, 2566, (5879, 2939, 2940)),
            ("questions", 48921, 1460, (24460, 12230, 12231)),
            ("tfinance", 39357, 1803, (15742, 7871, 15744)),
        ],
    )
    @pytest.mark.parametrize("trial", [0, 9])
    def test_full_supervision_has_its_ratios_and_seeds(self, name, nodes, anomalies, counts, trial):
        from sklearn.model_selection import train_test_split

        labels, seed = labels_with(nodes, anomalies), 3407 + 10 * trial
        share, val_share = GADBENCH_RATIOS[name]
        ids = list(range(nodes))
        train, rest = train_test_split(ids, stratify=labels, train_size=share, random_state=seed)
        val, test = train_test_split(rest, stratify=labels[rest], train_size=int(nodes * val_share), random_state=seed)
        split = make_split(labels, "published", trial, "gadbench", name)
        for found, expected in ((split.train, train), (split.val, val), (split.test, test)):
            assert found.tolist() == sorted(expected)
        assert (len(train), len(val), len(test)) == counts
        same = make_split(labels, "published", trial, "gadbench", f"gadbench_{name}")
        assert same.sha256(nodes) == split.sha256(nodes)

    def test_few_labels_are_drawn_trial_after_trial(self):
        labels = labels_with(1000, 100, unlabelled=50)
        np.random.seed(3497)
        for trial in range(3):
            positive = np.random.choice(np.flatnonzero(labels == 1), size=40, replace=False)
            negative = np.random.choice(np.flatnonzero(labels == 0), size=160, replace=False)
            split = make_split(labels, "published", trial, "gadbench", "reddit", semi_supervised=True)
            assert split.train.tolist() == sorted([*positive[:20], *negative[:80]])
            assert split.val.tolist() == sorted([*positive[20:], *negative[80:]])
            together = np.concatenate([split.train, split.val, split.test])
            assert np.array_equal(np.sort(together), np.arange(50, 1000))

    def test_amazon_has_the_one_split_of_dgl(self):
        labels = np.random.default_rng(0).permutation(labels_with(500, 100))
        labels[:50] = -1
        shuffled = np.random.RandomState(717).permutation(np.arange(50, 500))
        for trial in (0, 5):
            split = make_split(labels, "published", trial, "gadbench", "amazon")
            assert split.train.tolist() == sorted(shuffled[:315])
            assert split.val.tolist() == sorted(shuffled[-45:])
            assert len(split.test) == 90

    @pytest.mark.parametrize(
        ("name", "nodes", "anomalies", "unlabelled", "counts"),
        [("amazon", 11944, 821, 3305, (6047, 863, 1729)), ("yelp", 45954, 6677, 0, (32167, 4595, 9192))],
    )
    def test_the_parts_of_dgl_s_graphs_have_their_published_sizes(self, name, nodes, anomalies, unlabelled, counts):
        split = make_split(labels_with(nodes, anomalies, unlabelled), "published", 0, "gadbench", name)
        assert (len(split.train), len(split.val), len(split.test)) == counts

    def test_a_ratio_of_ones_own_leaves_a_third_of_the_rest_for_validation(self):
        split = make_split(labels_with(1000, 200), 0.4, 0, "gadbench", "file")
        assert (len(split.train), len(split.val), len(split.test)) == (400, 200, 400)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("published", 10, "gadbench", "reddit"), "seed=0 to seed=9, not 10"),
            (("published", 0, "gadbench", "elliptic"), r"set data\.split=masks"),
            (("published", 0, "gadbench", "file"), r"no ratio for file .*set data\.train_ratio"),
            (("published", 0, "held_out", "reddit"), "train_ratio must be a number"),
            ((0.4, 0, "held_out", "reddit", True), "set protocol=gadbench too"),
            (("published", 0, "gadbench", "reddit", True), r"has 30 and 970 .*semi_supervised=false"),
        ],
    )
    def test_what_it_has_no_split_for_is_an_error(self, arguments, message):
        with pytest.raises(UserError, match=message):
            make_split(labels_with(1000, 30), *arguments)


@settings(max_examples=20, deadline=None)
@given(groups=st.integers(40, 200), ratio=st.floats(0.2, 0.6), seed=st.integers(0, 9))
def test_groups_are_in_one_part(groups, ratio, seed):
    generator = np.random.default_rng(seed)
    group = generator.integers(groups, size=4000)
    labels = generator.integers(-1, 2, size=4000)
    shares = []
    for protocol in ("held_out", "gadbench"):
        split = make_split(labels, ratio, seed, protocol, groups=group)
        parts = split.parts(4000)
        assert np.array_equal(parts > 0, labels >= 0)
        present = [np.unique(group[part]) for part in (split.train, split.val, split.test)]
        assert len(np.concatenate(present)) == len(np.unique(group[labels >= 0]))
        shares.append([len(part) / groups for part in present])
    assert np.allclose(shares, [ratio, (1 - ratio) / 3, (1 - ratio) * 2 / 3], atol=2 / 40)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"protocol": "released"}, "data.group_by needs protocol=held_out"),
     ({"protocol": "gadbench", "semi_supervised": True}, "data.group_by needs"),
     ({"protocol": "gadbench", "seed": 10}, "seed=0 to seed=9"),
     ({"train_ratio": "published"}, "no published ratio"),
     ({"seed": -1}, "seeds of splits start at 0"),
     ({"groups": np.arange(1000) // 500}, "another seed|cannot be split"),
     ({"groups": np.zeros(1000, np.int64)}, "1 groups cannot be split at train_ratio 0.4")],
)  # fmt: skip
def test_groups_that_cannot_be_split_are_an_error(changes, message):
    given = {"train_ratio": 0.4, "seed": 0, "protocol": "held_out", "groups": np.arange(1000) // 3, **changes}
    with pytest.raises(UserError, match=message):
        make_split(labels_with(1000, 100), **given)
