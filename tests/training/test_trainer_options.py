"""Options of Lightning's Trainer: refused where they would do nothing, supported where they can be."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest

from et.runs.identity import config_of
from et.training.run import train
from et.training.sampler import EpochSampler
from et.training.trainer_options import (
    OWNED,
    batches_before_validation,
    batches_of_training,
    check_numbers,
    check_options,
)
from et.utils.errors import UserError

BEST = ("checkpoint=best", "callbacks.monitor=val/mse")


@pytest.mark.parametrize("key", OWNED)
def test_an_option_that_a_run_sets_itself_is_refused_before_any_work(tiny, tmp_path, key):
    with pytest.raises(UserError, match=rf"trainer\.{key} cannot be set: "):
        train(tiny(f"+trainer.{key}=false"))
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("value", [-1, 1.5, True, "all"])
def test_a_limit_that_is_no_number_of_batches_is_refused(value):
    for key in ("overfit_batches", "limit_val_batches"):
        with pytest.raises(UserError, match=rf"trainer\.{key} must be a number of batches"):
            check_options({key: value})


@pytest.mark.parametrize(
    ("key", "wrong", "right"),
    (
        ("seed", (-1, 1.5, 2**32, None, True), (0, 2**32 - 1)),
        ("optim.clip_norm", (0, -1, "x"), (None, 0.5)),
        ("trainer.gradient_clip_val", (0, -1), (None, 1)),
        ("optim.schedule.warmup_epochs", (-1, "x", None), (0, 0.5, 3)),
        ("optim.schedule.start_lr", (-1, None), (0, 0.1)),
        ("optim.optimizer.lr", (0, -1, None, [1]), (0.1, 1)),
        ("callbacks.save_every_n_epochs", (0, -1, 1.5), (1, 7)),
        ("callbacks.patience", (0, -1), (None, 1)),
        ("trainer.accumulate_grad_batches", (0, -1), (1, None)),
        ("trainer.check_val_every_n_epoch", (0, -1), (1, None)),
        ("trainer.val_check_interval", (0, 0.0), (0.5, 3)),
        ("trainer.log_every_n_steps", (-1,), (0, 5)),
        ("trainer.max_steps", (-2,), (-1, 0)),
        ("trainer.devices", (0, -2), (-1, 2, "auto")),
        ("trainer.num_nodes", (0,), (1,)),
        ("model.step_size", (-0.1, "x", None), (0, 0.1)),
    ),
)
def test_a_number_out_of_its_range_is_refused(key, wrong, right):
    plain = {
        "seed": 0, "optim": {"clip_norm": None, "schedule": {"name": "x", "warmup_epochs": 0}, "optimizer": {}},
        "callbacks": {"save_every_n_epochs": 1}, "model": {}, "trainer": {"devices": 1},
    }  # fmt: skip

    def changed(value):
        config = copy.deepcopy(plain)
        *sections, name = key.split(".")
        place = config
        for section in sections:
            place = place[section]
        place[name] = value
        return config

    for value in wrong:
        with pytest.raises(UserError, match=rf"^{key} must be"):
            check_numbers(changed(value))
    for value in right:
        check_numbers(changed(value))


@pytest.mark.parametrize("name", ["demo_inpainting", "demo_anomaly", "tu_mutag_gin", "imagenet_inpainting", "zinc"])
def test_the_numbers_of_shipped_experiments_are_in_their_ranges(name):
    check_numbers(config_of([f"experiment={name}"]))


def test_an_interval_longer_than_an_epoch_is_refused(tiny):
    with pytest.raises(UserError, match=r"`val_check_interval` \(1000\) must be less"):
        train(tiny("+trainer.val_check_interval=1000"))


def test_lightnings_own_sampler_is_refused():
    check_options({"use_distributed_sampler": False, "limit_train_batches": 0.5, "overfit_batches": 3})
    with pytest.raises(UserError, match="use_distributed_sampler must be false"):
        check_options({"use_distributed_sampler": True})


@pytest.mark.parametrize("experiment", ["demo_graphs", "demo_inpainting"])
def test_a_protocol_that_the_task_does_not_have_is_refused(config, experiment):
    with pytest.raises(UserError, match=r"(no protocol=gadbench: set protocol=|protocol must be )held_out or released"):
        train(config(f"experiment={experiment}", "protocol=gadbench"))


@pytest.mark.parametrize("batches", [2, 1.0])
def test_overfitting_repeats_the_batches_of_the_first_epoch(tiny, monkeypatch, batches):
    seen, original = [], EpochSampler.__iter__

    def recorded(self):
        samples = list(original(self))
        if self.shuffle:
            seen.append(samples)
        return iter(samples)

    monkeypatch.setattr(EpochSampler, "__iter__", recorded)
    outcome = train(tiny(f"+trainer.overfit_batches={batches}"))
    assert outcome.record["steps"] == 3 * (2 if batches == 2 else 3) and outcome.record["epochs"] == 3
    assert len(seen) >= 3 and all(samples == seen[0] for samples in seen)


def test_graphs_can_be_overfitted(config):
    options = (
        "experiment=demo_graphs", "model.dim=16", "model.num_heads=2", "model.head_dim=8", "model.num_memories=16",
        "trainer.max_epochs=2", "+trainer.overfit_batches=2", "+trainer.limit_test_batches=2",
    )  # fmt: skip
    assert train(config(*options)).record["steps"] == 4


@pytest.mark.parametrize(
    ("option", "message"),
    (
        ("+trainer.limit_val_batches=0", r"trainer\.limit_val_batches is 0"),
        ("+trainer.max_steps=2", "training ends after 2 batches and the first validation comes after 3"),
    ),
)
def test_the_best_epoch_of_a_run_that_never_validates_is_refused(tiny, tmp_path, option, message):
    with pytest.raises(UserError, match=message):
        train(tiny(*BEST, option))
    assert not list((tmp_path / "runs").rglob("*.ckpt"))


def test_a_run_that_validates_in_time_has_a_best_epoch(tiny):
    assert train(tiny(*BEST, "+trainer.max_steps=4")).record["best_epoch"] == 0
    assert train(tiny(*BEST, "+trainer.max_steps=2", "+trainer.val_check_interval=1")).record["best_epoch"] == 0


def test_a_run_that_its_time_limit_ends_before_the_first_validation_says_so(tiny):
    with pytest.warns(UserWarning, match="before its first validation: the last weights are tested"):
        outcome = train(tiny(*BEST, "+trainer.max_time='00:00:00:00'"))
    assert outcome.record["best_epoch"] is None


@pytest.mark.parametrize(
    ("every", "interval", "steps", "accumulate", "first", "last"),
    (
        (1, 10, -1, 1, 10, 50),
        (3, 10, -1, 1, 30, 50),
        (None, 70, -1, 1, 70, 50),
        (1, 4, 3, 1, 4, 3),
        (1, 10, 4, 4, 10, 14),  # three steps an epoch: the last one of two batches
        (1, float("inf"), -1, 1, 10, 50),
    ),
)
def test_batches_up_to_the_first_validation(every, interval, steps, accumulate, first, last):
    trainer = SimpleNamespace(
        num_training_batches=10, val_check_batch=interval, check_val_every_n_epoch=every, max_epochs=5, max_steps=steps,
        accumulate_grad_batches=accumulate,
    )  # fmt: skip
    assert (batches_before_validation(trainer), batches_of_training(trainer)) == (first, last)
