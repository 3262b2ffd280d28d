"""Every experiment composes, builds and keeps its run id; some of each kind run one batch from end to end.

What asks for all experiments is in this file, since each is composed once per process.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from et.runs import experiments
from et.runs.identity import config_of, resolve
from et.runs.record import run_id
from et.training.run import train
from et.training.trainer_options import check_run
from et.utils.errors import UserError
from tests.configs import ROOT, compose_config

EXPERIMENTS = experiments.names()
GRAPH_BASELINES = [name for name in EXPERIMENTS if re.fullmatch(r"(tu|gnnbench|zinc).*_(gin|gat|gt)", name)]
# Run ids of every experiment of this project's results, by protocol, with seed 0 and fold 0.
RUN_IDS = json.loads((ROOT / "tests" / "fixtures" / "run_ids.json").read_text())
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
def test_composes_builds_and_keeps_its_run_ids(name, monkeypatch):
    """Recorded results are found by their id: no change of code or configuration files may change one."""
    cfg = compose_config(f"experiment={name}", "trainer.accelerator=cpu")
    assert cfg.name == name, "an experiment is called like its file"
    check_run(resolve(cfg))
    with torch.device("meta"):  # shapes without memory: what counts is that every argument has its place
        network = instantiate(cfg.model)
    assert sum(p.numel() for p in network.parameters()) > 0 or hasattr(network, "fit")  # trees have none
    monkeypatch.delenv("ET_DATA_DIR", raising=False)
    for protocol, identity in RUN_IDS.get(name, {}).items():
        fidelity = {"held_out": "paper", "released": "released"}[protocol]
        assert run_id(config_of([f"experiment={name}", f"protocol={protocol}", f"fidelity={fidelity}"])) == identity


def test_every_experiment_with_run_ids_is_there():
    assert RUN_IDS.keys() <= set(EXPERIMENTS)


@pytest.mark.parametrize("name", GRAPH_BASELINES)
def test_baselines_use_the_same_folds_as_et(name):
    et, baseline = (compose_config(f"experiment={n}") for n in (name.rpartition("_")[0], name))
    types = ("one_hot", "num_features", "num_edge_features") if "zinc" in name else ()  # ET has the types as numbers
    assert {key: value for key, value in baseline.data.items() if key not in types} == {
        key: value for key, value in et.data.items() if key not in types
    }
    assert baseline.callbacks == et.callbacks and baseline.trainer.max_epochs == et.trainer.max_epochs
    with torch.device("meta"):
        assert sum(p.numel() for p in instantiate(baseline.model).parameters()) > 10_000


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
