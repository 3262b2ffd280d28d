"""Splits and the released code's scoring loop."""

import re

import numpy as np
import pytest
import torch

from et.graphs.protocol import everything_split, held_out_split, released_accuracy, released_fold
from et.utils.errors import UserError

LABELS = torch.tensor([0] * 60 + [1] * 35 + [2] * 25)


def test_folds_partition_the_graphs_and_keep_the_classes_proportions():
    splits = [held_out_split(LABELS, fold, 10, seed=3) for fold in range(10)]
    tested = torch.cat([split["test"] for split in splits])
    assert torch.equal(tested.sort().values, torch.arange(120))
    for split in splits:
        parts = torch.cat(list(split.values()))
        assert torch.equal(parts.sort().values, torch.arange(120))
        assert len(split["test"]) == 12 and len(split["val"]) == 11
        for part in split.values():
            share = torch.bincount(LABELS[part], minlength=3) / len(part)
            assert torch.allclose(share, torch.tensor([0.5, 0.29, 0.21]), atol=0.09)


def test_folds_depend_on_the_seed_alone():
    first, again, other = (held_out_split(LABELS, 4, 10, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[part], again[part]) for part in first)
    assert not torch.equal(first["test"], other["test"])


def test_a_class_with_fewer_graphs_than_folds_and_a_fold_that_is_none_are_refused():
    few = torch.cat([LABELS, torch.tensor([3] * 4)])
    with pytest.raises(UserError, match=r"class 3 has 4 graphs.*data\.folds=4 \(or fewer\) or data\.stratified=false"):
        held_out_split(few, 0, 10, seed=0)
    with pytest.raises(UserError, match=r"set data\.stratified=false"):
        held_out_split(torch.cat([LABELS, torch.tensor([3])]), 0, 2, seed=0)
    with pytest.raises(UserError, match=r"data\.fold=10"):
        held_out_split(LABELS, 10, 10, seed=0)
    with pytest.raises(UserError, match="two folds or more"):
        held_out_split(LABELS, 0, 1, seed=0)
    with pytest.raises(UserError, match="leave none to validate on"):
        held_out_split(torch.arange(4).repeat(2), 0, 2, seed=0)
    with pytest.raises(UserError, match="too few for 10 folds"):
        held_out_split(LABELS[:5], 0, 10, seed=0, stratified=False)
    with pytest.raises(UserError, match="3 graphs are too few for 2 folds"):
        held_out_split(LABELS[:3], 0, 2, seed=0, stratified=False)
    with pytest.raises(UserError, match="real numbers"):
        held_out_split(LABELS.float(), 0, 10, seed=0)


@pytest.mark.parametrize("counts", [(60, 5), (40, 3), (4, 36), (600, 11), (11, 150, 77), (3, 3, 3, 3), (2, 50)])
def test_the_advised_folds_run(counts):
    """As many folds as the smallest class has graphs: training and test part hold every class in each of them."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    with pytest.raises(UserError) as caught:
        held_out_split(labels, 0, min(counts) + 1, seed=0)
    advised = int(re.search(r"set data\.folds=(\d+) ", str(caught.value))[1])
    tested = []
    for fold in range(advised):
        parts = held_out_split(labels, fold, advised, seed=0)
        assert torch.equal(torch.cat(list(parts.values())).sort().values, torch.arange(len(labels)))
        assert len(parts["val"]) > 0
        for part in ("train", "test"):
            assert torch.bincount(labels[parts[part]], minlength=len(counts)).min() > 0
        tested.append(parts["test"])
    assert torch.equal(torch.cat(tested).sort().values, torch.arange(len(labels)))


def test_folds_without_regard_to_classes_take_classes_of_one_graph():
    labels = torch.cat([LABELS, torch.tensor([3])])
    tested = [held_out_split(labels, fold, 10, seed=0, stratified=False)["test"] for fold in range(10)]
    assert torch.equal(torch.cat(tested).sort().values, torch.arange(121))


def test_released_folds_look_at_the_first_of_both_parts():
    folds = released_fold(188, seed=0)
    assert len(folds) == 10
    for looked_at in folds:
        n = int(0.1 * (188 - 19)) if len(looked_at) == 32 else int(0.1 * (188 - 18))
        larger, smaller = looked_at[:n], looked_at[n:]
        assert len(smaller) == n
        assert (larger.diff() > 0).all() and (smaller.diff() > 0).all()
        assert not np.isin(larger, smaller).any()
        # The first graphs of the data set, but for those that happen to be in the smaller part.
        assert larger[-1] < n + 10
    smaller_parts = torch.cat([looked_at[len(looked_at) // 2 :] for looked_at in folds])
    assert len(smaller_parts.unique()) == len(smaller_parts) > 150


def test_released_accuracy_against_the_loop_spelled_out():
    """An independent version: explicit lists, batch by batch."""
    right = set(range(0, 150, 3))
    for seed in (5, 6):
        found = released_accuracy(lambda graphs: torch.tensor([int(g) in right for g in graphs]), 150, seed)
        accuracies = []
        for looked_at in released_fold(150, seed):
            numbers, batches = looked_at.tolist(), []
            while numbers:
                batch, numbers = numbers[:64], numbers[64:]
                batches.append(sum(number in right for number in batch) / len(batch))
            accuracies.append(sum(batches) / len(batches))
        assert found == pytest.approx(sum(accuracies) / 10, abs=1e-6)


def test_released_accuracy_favours_the_first_tenth():
    """The score of a model that is right about the first tenth only is far above its accuracy."""
    for seed in range(5):
        assert released_accuracy(lambda graphs: graphs < 20, 200, seed) > 0.5
    assert released_accuracy(lambda graphs: graphs >= 0, 200, seed=0) == 1.0


def test_everything_is_everything():
    parts = everything_split(7)
    assert torch.equal(parts["train"], torch.arange(7)) and torch.equal(parts["test"], torch.arange(7))
    assert len(parts["val"]) == 0
