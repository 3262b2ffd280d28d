"""Keys and values that mean nothing are refused before any work, with the nearest right ones."""

import copy
import re

import pytest
from hydra.errors import InstantiationException

from et.runs.config_check import REQUIRED, check_config
from et.runs.identity import config_of
from et.training.run import train
from et.utils.errors import UserError, user_message
from tests.configs import TINY

FAMILIES = ("demo_inpainting", "demo_anomaly", "demo_graphs")


@pytest.fixture(scope="module")
def configs():
    return {
        name: config_of([f"experiment={name}"])
        for name in (*FAMILIES, "tu_mutag_gin", "imagenet_inpainting", "reddit_gadbench")
    }


def changed(config, key, value):
    """A copy of ``config`` with ``key`` set; sections on the way are made."""
    head, _, rest = key.partition(".")
    inner = changed(config.get(head) if isinstance(config.get(head), dict) else {}, rest, value) if rest else value
    return {**config, head: inner}


def test_what_is_shipped_is_accepted(configs):
    for config in configs.values():
        check_config(config)
    for key, value in (
        ("trainer.limit_val_batches", 2), ("trainer.max_time", "00:01:00:00"), ("trainer.devices", "auto"),
        ("trainer.deterministic", "warn"), ("deterministic", "warn"), ("trainer.gradient_clip_algorithm", "value"),
        ("callbacks.tie_break", "val/loss"), ("optim.optimizer.weight_decay", 0.1), ("model.block.hopfield_beta", 2.0),
        ("data.source.crop_pct", 0.9), ("task.compile", True), ("checkpoint", "current"),
    ):  # fmt: skip
        check_config(changed(configs["demo_inpainting" if "source" not in key else "imagenet_inpainting"], key, value))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("key", "value", "message"),
    (
        ("nonsense.key", 3, "nonsense: there is no such key; the configuration has name, seed"),
        ("sed", 3, "did you mean seed"),
        ("learning", 3, "there is no such key"),
        ("lr", 3, r"lr: there is no such key; did you mean optim\.optimizer\.lr"),
        ("callbacks.early_stopping", 3, "callbacks.early_stopping: there is no such key; callbacks has monitor"),
        ("callbacks.early_stopping", {"patience": 3}, "callbacks.early_stopping: there is no such key"),
        (
            "callbacks.stop",
            {"_target_": "pytorch_lightning.callbacks.EarlyStopping", "monitor": "x", "patince": 3},
            r"did you mean callbacks\.stop\.patience",
        ),
        ("callbacks.stop", {"_target_": "pytorch_lightning.callbacks.Stopping"}, "cannot be imported"),
        ("callbacks.montor", "x", r"did you mean callbacks\.monitor"),
        ("callbacks.mode", "maximise", "callbacks.mode must be min or max, not 'maximise'"),
        ("callbacks.pictures.mine", 3, "callbacks.pictures.mine: (there is no such key|Pictures takes no mine)"),
        ("protocol", "heldout", "protocol must be held_out, released or gadbench, .*; did you mean held_out"),
        ("fidelity", "papr", "did you mean paper"),
        ("checkpoint", "lst", "checkpoint must be best, last or current, not 'lst'; did you mean last"),
        ("deterministic", 1, "deterministic must be true, false or warn"),
        ("trainer.max_epoch", 3, r"trainer.max_epoch: Trainer takes no max_epoch; did you mean trainer\.max_epochs"),
        ("trainer.accelerator", "gpuu", "did you mean gpu"),
        ("trainer.accumulate_grad_batches", "two", "must be a whole number, not the text 'two'"),
        ("trainer.gradient_clip_algorithm", "norms", "did you mean norm"),
        ("optim.optimizer.wieght_decay", 1, r"did you mean optim\.optimizer\.weight_decay"),
        ("optim.optimizer.params", 1, "is given by the run itself"),
        ("optim.clipnorm", 1, r"did you mean optim\.clip_norm"),
        ("optim.schedule.name", "linear", "must be constant, cosine or warmup_cosine"),
        ("optim.schedule.warmup", 1, r"optim\.schedule\.warmup"),
        ("task.network", 1, "task.network is given by the run itself"),
        ("task.seeed", 1, "takes no seeed"),
        ("data.num_wrokers", 1, "did you mean"),
        ("data.made_up", {"_target_": "x.y"}, "takes no made_up"),
        ("model.nonsense", 1, "model.nonsense: .* takes no nonsense"),
        ("model", 3, "model must name a class"),
        ("callbacks", 3, "callbacks is a section"),
        ("logger.wandb", 1, "logger.wandb: there is no such key; logger has none, and classes to instantiate"),
        ("logger.extra", ["wandb"], r"this key was removed; choose loggers by name, .*logger=\[tensorboard,wandb\]"),
        ("paths.run", 1, r"did you mean paths\.runs"),
        ("sweep.dryrun", True, r"did you mean sweep\.dry_run"),
        ("by_fidelity", {"nonsense": 3}, "by_fidelity has the keys paper, released, not nonsense"),
        ("by_fidelity", {"paper": {"x": 1}, "released": {}}, "only one fidelity has x"),
        ("precision_by_fidelity.x", 3, "precision_by_fidelity.x: there is no such key"),
        ("callbacks.monitor_by_protocol.x", 3, "callbacks.monitor_by_protocol.x: there is no such key"),
        ("model._partial_", True, "model._partial_ must be left out"),
        ("model._args_", [1], "model._args_: name the arguments"),
        ("model._convert_", "some", "model._convert_ must be none, partial, object or all"),
        ("optim.optimizer._partial_", False, "optim.optimizer._partial_ must be true"),
        ("paths.runs", None, "paths.runs must be the name of a folder"),
        ("paths.data", 3, "paths.data must be the name of a folder"),
        ("tags", [1], "tags must be a list of texts"),
        ("tags", "mine", "tags must be a list of texts"),
    ),
)
def test_unknown_keys_and_values_are_refused_in_every_family(configs, family, key, value, message):
    if key.startswith("data.num") and family == "demo_anomaly":
        value, key = 1, "data.num_noddes"
    with pytest.raises(UserError, match=message):
        check_config(changed(configs[family], key, value))


@pytest.mark.parametrize(
    ("experiment", "key", "value"),
    (
        ("demo_graphs", "data.protocol", "released"), ("demo_graphs", "task.protocol", "released"),
        ("demo_anomaly", "task.protocol", "gadbench"),
        ("reddit_gadbench", "data.protocol", "held_out"), ("demo_anomaly", "data.fidelity", "released"),
        ("demo_graphs", "model.fidelity", "released"), ("demo_inpainting", "task.fidelity", "released"),
    ),
)  # fmt: skip
def test_a_section_follows_the_protocol_and_the_fidelity_of_the_run(configs, experiment, key, value):
    """Else a model that was trained on its test graphs would have a record that says held_out."""
    with pytest.raises(UserError, match=rf"{key}={value}, but the run has .*: set {key.split('.')[1]}={value} alone"):
        check_config(changed(configs[experiment], key, value))


@pytest.mark.parametrize("key", REQUIRED)
def test_what_every_run_reads_cannot_be_taken_away(configs, key):
    config = copy.deepcopy(configs["demo_anomaly"])
    *sections, name = key.split(".")
    place = config
    for section in sections:
        place = place[section]
    del place[name]
    with pytest.raises(UserError, match=f"lacks .*{key}"):
        check_config(config)


def test_callbacks_and_loggers_are_those_of_lightning_with_what_they_need(tiny):
    norm = "{_target_: et.core.EnergyLayerNorm, dim: 3}"
    for override, message in (
        (f"+callbacks.mine={norm}", "EnergyLayerNorm is not a Lightning callback"),
        (f"+logger.mine={norm}", "EnergyLayerNorm is not a Lightning logger"),
        ("+callbacks.stop._target_=pytorch_lightning.callbacks.EarlyStopping",
         r"^callbacks\.stop: EarlyStopping needs 'monitor'$"),
    ):  # fmt: skip
        with pytest.raises((UserError, InstantiationException)) as caught:
            train(tiny(override))
        assert re.search(message, user_message(caught.value))


@pytest.mark.parametrize(
    ("experiment", "key", "value", "message"),
    (
        ("demo_inpainting", "model.fidelity", "x", "model.fidelity must be paper or released"),
        ("demo_inpainting", "model.block.activation", "gelu", "model.block.activation must be relu, softmax or power"),
        ("demo_inpainting", "model.block.hopfield_bta", 1, r"did you mean model\.block\.hopfield_beta"),
        ("demo_inpainting", "data.source.crops", 1, "Photos takes no crops"),
        ("imagenet_inpainting", "data.source.augmentation.hflp", 1, r"did you mean data.source.augmentation.hflip"),
        ("demo_graphs", "model.layout", "paded", "model.layout must be sparse or padded, .*; did you mean padded"),
        ("demo_graphs", "model.released.layout", "x", "model.released.layout must be"),
        ("demo_graphs", "model.released.laout", "x", "did you mean model.released.layout"),
        ("demo_graphs", "data.source", "tuu", "data.source must be"),
        ("demo_graphs", "model.flips", "both", "vectors, entries or null"),
        ("demo_anomaly", "data.one_way_edges", "drop", "data.one_way_edges must be error, mirror or keep"),
        ("demo_anomaly", "data.standardize", "test", "data.standardize must be none, train or all"),
        ("demo_anomaly", "model.combine", "mean", "model.combine must be max or concat"),
        ("tu_mutag_gin", "optim.schedule.warmup_epochs", 3,
         r"under optim\.schedule\.name=constant; .*warmup_cosine takes warmup_epochs, start_lr, end_lr"),
        ("tu_mutag_gin", "model._target_", "et.baselines.nothing.At", "cannot be imported"),
    ),
)  # fmt: skip
def test_what_a_class_takes_is_asked_of_its_constructor(configs, experiment, key, value, message):
    with pytest.raises(UserError, match=message):
        check_config(changed(configs[experiment], key, value))


def test_loggers():
    config = config_of(["experiment=demo_graphs", "logger=[tensorboard,wandb]", "+logger.wandb.entity=me"])
    check_config(config)
    check_config(changed(config, "logger.mine", {"_target_": "pytorch_lightning.loggers.CSVLogger", "name": "x"}))
    with pytest.raises(UserError, match=r"did you mean logger\.wandb\.project"):
        check_config(changed(config, "logger.wandb.projct", "x"))
    for key in ("logger.wandb.id", "logger.tensorboard.version"):
        with pytest.raises(UserError, match="is given by the run itself"):
            check_config(changed(config, key, "x"))


def test_sections_alone_are_checked_without_importing_a_class(configs):
    config = changed(configs["tu_mutag_gin"], "model._target_", "no.such.Class")
    check_config(config, classes=False)
    with pytest.raises(UserError, match="protocol must be"):
        check_config({**config, "protocol": "x"}, classes=False)


def test_train_refuses_before_it_writes_anything(config, tmp_path):
    for override, message in (
        ("+nonsense.key=3", "nonsense: there is no such key"),
        ("+callbacks.early_stopping=true", "callbacks.early_stopping"),
        ("protocol=heldout", "did you mean held_out"),
        ("name=../../escape", "name must be the name of a folder"),
        (f"name={tmp_path}/elsewhere", "name must be the name of a folder"),
    ):
        with pytest.raises(UserError, match=message):
            train(config(*TINY, override))
    assert not any(tmp_path.iterdir())
