"""Cells, configurations and run ids."""

from __future__ import annotations

import json

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from et.runs import record
from et.runs.identity import (
    Key,
    check_overrides,
    compose_config,
    config_of,
    differences,
    flatten,
    key_of,
    reproduces,
)
from et.runs.record import run_id
from et.utils.errors import UserError
from et.utils.paths import CONF, EXPERIMENTS
from tests.configs import TINY

KEY = Key("demo_inpainting", 3, "held_out", "paper")


@pytest.mark.parametrize(
    "overrides",
    [
        KEY.overrides(),
        [*TINY, "paths.runs=elsewhere", "callbacks.progress=false"],
        ["experiment=tu_mutag_gin", "data.fold=3", "protocol=released", "fidelity=released", "model.hidden=16"],
        ["experiment=demo_anomaly", "+tags=[a,b]", "data.path='x y'", "deterministic=warn", "~data.root"],
        ["task=graphs", "data=mutag", "name=mine", "callbacks=[graphs,ema]", "logger=[csv,tensorboard]"],
        ["experiment=yelp_1pct_bwgnn", "sweep=table01", "protocol=released"],
        ["experiment=tolokers_gadbench", "sweep=search_anomaly", "hydra/launcher=slurm"],  # in Hydra's own section
        ["experiment=demo_graphs", "debug=fast", "+callbacks.x={_target_: a.B, y: [1, null]}", "++data.z=1e-3"],
    ],
)
def test_values_set_after_composition_are_those_of_hydra(overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("train", overrides)
    assert OmegaConf.to_yaml(compose_config(overrides)) == OmegaConf.to_yaml(composed)


def test_inside_a_hydra_application_it_is_the_same():
    outside = config_of(KEY.overrides())
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert config_of(["experiment=demo_inpainting", "seed=3", "deterministic=true"]) == outside


def test_a_configuration_names_its_cell():
    assert key_of(config_of(KEY.overrides())) == KEY


@pytest.mark.parametrize(
    "harmless",
    [
        "paths.data=/elsewhere",
        "paths.runs=/elsewhere",
        "logger=tensorboard",
        "trainer.devices=4",
        "data.num_workers=3",
        "+data.cache=/elsewhere",
    ],
)
def test_places_loggers_and_hardware_leave_the_run_id(harmless):
    overrides = Key("imagenette_inpainting", 0, "held_out", "paper").overrides()
    assert reproduces([*overrides, harmless], run_id(config_of(overrides)))


@pytest.mark.parametrize("other", ["seed=4", "protocol=released", "fidelity=released", "trainer.max_epochs=7"])
def test_what_changes_a_result_changes_the_run_id(other):
    assert not reproduces([*KEY.overrides(), other], run_id(config_of(KEY.overrides())))


@pytest.mark.parametrize(("fidelity", "counts"), [("paper", False), ("released", True)])
def test_a_key_added_later_leaves_the_run_id_at_the_value_that_changes_nothing(monkeypatch, fidelity, counts):
    config = config_of([*KEY.overrides(), f"fidelity={fidelity}"])
    before = run_id(config)
    monkeypatch.setattr(record, "ADDED_KEYS", {**record.ADDED_KEYS, "model.block.new": {"paper": None}})
    config["model"]["block"]["new"] = None
    assert (run_id(config) != before) == counts
    config["model"]["block"]["new"] = 0  # equal to False, and not to None
    assert run_id(config) != before
    assert config["model"]["block"] == {"new": 0}  # hashing changes nothing


def test_the_keys_added_later_exist():
    """Each stands in some configuration, with the value that a run id flatten out."""
    for fidelity in ("paper", "released"):
        experiments = ("demo_inpainting", "demo_graphs", "demo_anomaly", "demo_anomaly_trees")
        found = [flatten(config_of([f"experiment={name}", f"fidelity={fidelity}"])) for name in experiments]
        for key, before in record.ADDED_KEYS.items():
            if fidelity in before:
                assert any(key in config and config[key] == before[fidelity] for config in found), key


def test_the_value_that_a_run_id_leaves_out_is_named_where_an_experiment_has_another():
    experiment = ["experiment=reddit_gadbench_encoded", "protocol=gadbench"]
    own, run = config_of(experiment), config_of([*experiment, "data.neighbour_hops=0", "data.num_features=64"])
    assert differences(own, run)["data.neighbour_hops"] == (2, 0)


def test_recorded_image_runs_keep_their_ids():
    for path in (EXPERIMENTS / "table14", EXPERIMENTS / "table16"):
        for line in (path / "results.jsonl").read_text().splitlines():
            recorded = json.loads(line)
            assert reproduces(recorded["overrides"], recorded["run_id"]), recorded["experiment"]


def test_differences_are_named_and_places_are_none():
    config = config_of(KEY.overrides())
    other = config_of([*KEY.overrides(), "trainer.max_epochs=7", "paths.data=/elsewhere"])
    assert differences(config, other) == {"trainer.max_epochs": (config["trainer"]["max_epochs"], 7)}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=no_such_thing"], "does not compose.*no_such_thing"),
        (["experiment=demo_inpainting", "trainer.no_such_key=1"], "does not compose.*Trainer takes no no_such_key"),
        (["experiment=demo_inpainting", "data.fold=1"], "InpaintingData takes no fold"),
        (["experiment=tu_mutag", "fidelity=bogus"], "fidelity must be paper or released, not 'bogus'"),
        (["experiment=tu_mutag", "sweep=table02", "protocol=heldout"], "protocol must be .*did you mean held_out"),
        (["experiment=tu_mutag", "data.num_features=${no.such}"], "does not resolve"),
        (["seed=1"], "lacks name: choose experiment"),
        (["experiment=tu_mutag", "data.sizes=[1,2"], r"does not compose: (?!.*quote)"),
        (["experiment=tu_mutag", 'data.path=a "b".npz'], r"""quote the value, 'data\.path="a \\"b\\"\.npz"'"""),
        (["experiment=tu_mutag", "data.path=größe.npz"], r"""quote the value, 'data\.path="größe\.npz"'"""),
    ],
)
def test_what_does_not_compose_is_an_error_for_people(overrides, message):
    with pytest.raises(UserError, match=message):
        config_of(overrides)
    assert not reproduces(overrides, "0" * 12)


@pytest.mark.parametrize(
    ("experiment", "override", "message"),
    [
        ("tu_mutag", "model.step_size=0.2", "model.released.step_size counts"),
        ("tu_mutag", "+model.head_mix=false", "model.released.head_mix counts"),
        ("tolokers_40pct", "model.step_size=0.2", "no such part"),
    ],
)
def test_what_does_nothing_under_released_is_refused(experiment, override, message):
    overrides = [f"experiment={experiment}", "fidelity=released", override]
    with pytest.raises(UserError, match=message):
        check_overrides(overrides, config_of(overrides))
    check_overrides(overrides, config_of([*overrides, "fidelity=paper"]))


def test_what_counts_under_released_can_be_set():
    for override in ("model.dim=64", "model.released.step_size=0.2"):
        overrides = ["experiment=tu_mutag", "fidelity=released", override]
        check_overrides(overrides, config_of(overrides))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_epochs=three", r"a number belongs there, such as \d+"),
        ("seed=abc", "a number belongs there, such as 0"),
        ("optim.optimizer.lr=fast", "a number belongs"),
        ("data.merge=perhaps", "true or false belongs there, such as true"),
    ],
)
def test_a_text_in_the_place_of_a_number_is_told(override, message):
    overrides = ["experiment=demo_anomaly", override]
    with pytest.raises(UserError, match=message):
        check_overrides(overrides, config_of(overrides))


def test_texts_numbers_and_names_in_their_places_pass():
    overrides = ["experiment=demo_anomaly", "data=graph_file", "protocol=released", "seed=2", "trainer.devices=auto"]
    overrides += ["trainer.strategy=auto", "+tags=[a,b]", "data.path=x", "deterministic=warn"]
    overrides += ["data.num_nodes=3", "data.num_features=2"]  # else they are read from the file, which is not there
    check_overrides(overrides, config_of(overrides))


def test_negative_numbers_are_numbers():
    assert config_of(["experiment=demo_anomaly", "seed=-1"])["seed"] == -1


@pytest.mark.parametrize(
    ("option", "default", "other"), [("drop_empty", "false", "true"), ("stratified", "true", "false")]
)
def test_an_option_that_recorded_runs_did_not_have_counts_where_it_is_used(option, default, other):
    plain = ["experiment=tu_mutag"]
    assert reproduces([*plain, f"data.{option}={default}"], run_id(config_of(plain)))
    assert not reproduces([*plain, f"data.{option}={other}"], run_id(config_of(plain)))


def test_counts_left_open_make_the_run_of_the_right_counts(tmp_path):
    from tests.anomaly.conftest import make_graph, save_npz

    own = ["experiment=demo_anomaly", "data=graph_file", f"data.path={save_npz(make_graph(), tmp_path / 'mine.npz')}"]
    config = config_of(own)
    assert (config["data"]["num_nodes"], config["model"]["in_features"]) == (200, 5)
    assert reproduces([*own, "data.num_nodes=200", "data.num_features=5"], run_id(config))
    with pytest.raises(UserError, match="there is no file"):
        config_of([*own[:2], f"data.path={tmp_path}/absent.npz"])


def test_values_of_the_other_fidelity_are_refused():
    for fidelity, refused, taken in (("paper", "released", "paper"), ("released", "paper", "released")):
        given = ["experiment=tu_mutag", f"fidelity={fidelity}"]
        override = f"by_fidelity.{refused}.batch_size=3"
        with pytest.raises(UserError, match=f"does nothing under fidelity={fidelity}"):
            check_overrides([*given, override], config_of([*given, override]))
        override = f"by_fidelity.{taken}.batch_size=3"
        assert config_of([*given, override])["data"]["batch_size"] == 3
        check_overrides([*given, override], config_of([*given, override]))


def test_a_group_that_is_set_to_nothing_is_told():
    for group in ("model", "trainer", "optim"):
        with pytest.raises(UserError, match="does not compose: Config group override must be"):
            config_of(["experiment=demo_graphs", f"{group}=null"])
