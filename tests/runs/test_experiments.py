"""Experiments that have no file: composition gives them, and Hydra finds them like any other."""

from __future__ import annotations

import pytest
import yaml

from et.results import measured, paper
from et.runs import experiments
from et.runs.config_check import check_config
from et.runs.identity import config_of
from et.sweeps.cells import jobs
from et.utils.errors import UserError
from et.utils.paths import CONF


def test_a_baseline_keeps_the_data_and_replaces_the_model():
    ours, baseline = (config_of([f"experiment={name}"]) for name in ("tsocial_1pct", "tsocial_1pct_bwgnn"))
    assert baseline["data"] == ours["data"]
    assert baseline["trainer"]["check_val_every_n_epoch"] == ours["trainer"]["check_val_every_n_epoch"] == 10
    assert baseline["model"]["_target_"] == "et.baselines.bwgnn.BWGNN"
    assert "head_dim" not in baseline["model"]


def test_a_variant_of_a_variant_composes():
    config = config_of(["experiment=yelp_1pct_bwgnn_hetero"])
    assert config["name"] == "yelp_1pct_bwgnn_hetero"
    assert (config["data"]["merge"], config["data"]["num_relations"]) == (False, 3)


def test_an_ablation_changes_one_value():
    ours, ablation = (config_of([f"experiment={name}"]) for name in ("yelp_1pct", "yelp_1pct_no_hopfield"))
    assert ablation["model"] == ours["model"] | {"use_hopfield": False}


def test_an_experiment_on_a_data_file_has_baselines_and_labels():
    config = config_of(["experiment=tolokers_gadbench_gcn_labels"])
    assert (config["protocol"], config["data"]["source"], config["data"]["train_ratio"]) == (
        "gadbench", "tolokers", "published",
    )  # fmt: skip
    assert (config["model"]["kind"], config["model"]["known_labels"], config["callbacks"]["patience"]) == (
        "gcn",
        True,
        51,
    )
    assert config_of(["experiment=reddit_gadbench_semi_xgbgraph"])["data"]["semi_supervised"]


@pytest.mark.parametrize("method", ["gcn", "sage", "gin", "gat", "gt_labels"])
def test_networks_of_one_graph_get_merged_relations(method):
    """These raise on more than one relation; the others keep those of the experiment apart."""
    assert config_of([f"experiment=yelp_reviewers_gadbench_{method}"])["data"]["merge"]
    assert not config_of(["experiment=yelp_reviewers_gadbench_bwgnn"])["data"]["merge"]


def test_variants_are_listed_where_some_are_of_data_files():
    assert {"xgbgraph", "gcn", "labels", "mlp"} <= set(experiments.variants_of("reddit_40pct"))
    assert "xgbgraph" not in experiments.variants_of("tu_mutag")


def test_no_composed_experiment_has_a_file_as_well():
    composed = [name for name in experiments.names() if experiments.is_composed(name)]
    assert composed and not set(composed) & set(experiments.files())
    assert len(experiments.files()) < 50


@pytest.mark.parametrize("name", ["yelp_1pct_bwgnn_gt", "yelp_1pct_nonsense", "tu_mutag_mlp", "nonsense_mlp"])
def test_a_variant_that_an_experiment_does_not_have_is_refused(name):
    assert not experiments.is_composed(name)
    with pytest.raises(UserError):
        config_of([f"experiment={name}"])


def test_every_experiment_of_a_sweep_or_a_table_exists():
    named = {
        dict(override.split("=", 1) for override in job).get("experiment")
        for file in (CONF / "sweep").glob("table*.yaml")
        for job in jobs(yaml.safe_load(file.read_text()))
    }
    tables = [paper.load(number) for number in paper.NUMBERS]
    named |= {name for table in tables for name, _ in measured.expected_runs(table.number)}
    assert len(named) > 150
    assert named <= set(experiments.names())


@pytest.mark.parametrize(
    ("choices", "name", "optimizer", "epochs", "monitor"),
    [
        ("task=anomaly data=yelp model=bwgnn data.train_ratio=0.1", "anomaly-yelp-bwgnn", "Adam", 100, "val/f1_macro"),
        ("task=anomaly data=tolokers", "anomaly-tolokers", "Adam", 100, "val/f1_macro"),
        ("task=anomaly_fitted data=breast_cancer", "anomaly_fitted-breast_cancer", "Adam", 1, "val/f1_macro"),
        ("task=graphs data=digits model=gin optim=adam", "graphs-digits-gin", "Adam", 100, "val/accuracy"),
        ("task=graphs data=mutag trainer.max_epochs=3", "graphs-mutag", "AdamW", 3, "val/accuracy"),
        ("data=imagenette model=vit callbacks=default", "inpainting-imagenette-vit", "AdamW", 100, None),
        ("task=graphs data=mutag name=mine", "mine", "AdamW", 100, "val/accuracy"),
    ],
)
def test_choices_without_an_experiment_are_a_run_with_a_name(choices, name, optimizer, epochs, monitor):
    config = config_of(choices.split())
    check_config(config, classes=False)
    assert config["name"] == name and config["optim"]["optimizer"]["_target_"] == f"torch.optim.{optimizer}"
    assert config["trainer"]["max_epochs"] == epochs and config["callbacks"]["monitor"] == monitor


def test_where_nothing_is_chosen_there_is_no_name():
    with pytest.raises(UserError, match="lacks name: choose experiment=NAME"):
        config_of([])
    with pytest.raises(UserError, match=r"data\.num_features.*choose data=NAME"):
        config_of(["task=anomaly"])
