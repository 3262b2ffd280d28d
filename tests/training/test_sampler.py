from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from et.training import sampler
from et.training.sampler import EpochSampler, per_process, sample_rng, shared_batches, whole_batches


def shares(world, length, epoch=0, used=None, **arguments):
    """What each of ``world`` processes gets."""
    found = []
    for rank in range(world):
        with patch.object(sampler, "rank_and_world", return_value=(rank, world)):
            shuffled = EpochSampler(length, used=used and used(length), **arguments)
            shuffled.set_epoch(epoch)
            found.append(list(shuffled))
            assert len(shuffled) == len(found[-1])
    return found


@given(length=st.integers(0, 40), world=st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_evaluation_sees_every_sample_exactly_once(length, world):
    indices = [index for share in shares(world, length) for _, index in share]
    assert sorted(indices) == list(range(length))


@given(length=st.integers(8, 60), epoch=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_two_processes_see_the_batches_of_one(length, epoch):
    arguments = {"seed": 3, "shuffle": True, "used": lambda length: whole_batches(length, 4)}
    (alone,) = shares(1, length, epoch, **arguments)
    first, second = shares(2, length, epoch, **arguments)
    assert len(first) == len(second)
    for start in range(0, len(alone), 4):
        half = start // 2
        assert set(alone[start : start + 4]) == set(first[half : half + 2]) | set(second[half : half + 2])


@given(length=st.integers(2, 60), world=st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_an_incomplete_last_batch_is_shared_out(length, world):
    batch = 4 * world
    rest = length % batch
    left_out = rest if rest < world else 0
    found = shares(world, length, shuffle=True, used=lambda length: shared_batches(length, batch))
    assert len({-(-len(share) // 4) for share in found}) == 1, "every process takes equally many steps"
    assert len({index for share in found for _, index in share}) == length - left_out


def test_the_order_depends_on_seed_and_epoch():
    def order(seed, epoch):
        return [index for _, index in shares(1, 20, epoch, seed=seed, shuffle=True)[0]]

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2) and order(0, 1) != order(1, 1)
    assert sorted(order(0, 1)) == list(range(20))


def test_training_leaves_out_what_does_not_fill_a_batch_but_keeps_a_small_set_whole():
    for length, used in ((10, 8), (3, 3)):
        assert len(shares(1, length, shuffle=True, used=lambda length: whole_batches(length, 4))[0]) == used


def test_the_epoch_comes_with_the_index():
    assert shares(1, 2, epoch=7)[0] == [(7, 0), (7, 1)]


def test_a_batch_that_does_not_divide_over_the_processes_is_refused():
    assert per_process(6) == 6
    with patch.object(sampler, "rank_and_world", return_value=(0, 4)):
        assert per_process(8) == 2
        with pytest.raises(ValueError, match="multiple of the 4 processes"):
            per_process(6)


def test_samples_have_generators_of_their_own():
    draws = {sample_rng(*key).integers(2**60) for key in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))}
    assert len(draws) == 4
    assert sample_rng(1, 2, 3).integers(2**60) == sample_rng(1, 2, 3).integers(2**60)


def test_a_repeating_sampler_has_the_first_epoch_in_all():
    repeated = EpochSampler(10, seed=3, shuffle=True)
    first = list(repeated)
    repeated.repeat = True
    repeated.set_epoch(4)
    assert list(repeated) == first and all(epoch == 0 for epoch, _ in first)
    repeated.skip = (4, 6)
    assert list(repeated) == first[6:], "what was seen before an interruption is left out"
