"""Every experiment composes and builds; those whose data is present run one batch from end to end."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from et.runs import experiments
from et.runs.identity import resolve
from et.training.run import train
from et.utils.errors import UserError
from tests.configs import ROOT, compose_config

EXPERIMENTS = experiments.names()
# One experiment of every kind of data, model and task: what all the others differ from in numbers only.
RUNNABLE = {
    "embedded": (
        "demo_inpainting", "demo_anomaly", "demo_anomaly_mlp", "demo_anomaly_trees", "demo_graphs", "demo_graphs_gat",
    ),
    "real": (
        "imagenette_inpainting", "imagenette_albert", "amazon_upu_1pct", "tolokers_1pct_bwgnn", "yelp_reviewers_1pct",
        "tu_mutag", "tu_mutag_gin",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_composes_and_builds(name):
    cfg = compose_config(f"experiment={name}", "trainer.accelerator=cpu")
    assert cfg.name == name, "an experiment is called like its file"
    resolve(cfg)
    with torch.device("meta"):  # shapes without memory: what counts is that every argument has its place
        network = instantiate(cfg.model)
    assert sum(p.numel() for p in network.parameters()) > 0 or hasattr(network, "fit")  # trees have none


def run_one_batch(config, name):
    outcome = train(config(f"experiment={name}", "debug=fast", "trainer=default", "trainer.accelerator=cpu"))
    assert any(key.startswith("test/") for key in outcome.record["metrics"])
    assert not (outcome.folder / "result.json").exists()


@pytest.mark.parametrize("name", RUNNABLE["embedded"])
def test_embedded_data_run_one_batch(config, name):
    run_one_batch(config, name)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", RUNNABLE["real"])
def test_real_data_run_one_batch(config, name, data_root):
    try:
        run_one_batch(config, name)
    except UserError as error:
        if "not there" in str(error) or "missing" in str(error):
            pytest.skip(str(error))
        raise


def test_every_demo_of_the_makefile_exists():
    makefile = Path(ROOT / "Makefile").read_text()
    named = {word.split("=")[1] for word in makefile.split() if word.startswith("experiment=")}
    assert named and named <= set(EXPERIMENTS)
