"""The experiment files have the paper's hyper-parameters, value for value (tables 4, 6, 9, 10, 11)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hydra.utils import instantiate
from torch import nn

from et.results import paper
from et.results.settings import compare, count_parameters, has_experiment, same
from et.runs.identity import Key, config_of

CONFIGURATIONS = [number for number in paper.NUMBERS if paper.load(number).kind == "configuration"]
EXPERIMENTS = sorted({(n, e) for n in CONFIGURATIONS for s in paper.load(n).settings for e in s.experiments})


@pytest.mark.parametrize(("number", "experiment"), EXPERIMENTS)
def test_an_experiment_file_has_the_papers_settings(number, experiment):
    if not has_experiment(experiment):
        pytest.skip(f"conf/experiment/{experiment}.yaml is not there yet")
    wrong, compared = [], 0
    for setting in (s for s in paper.load(number).settings if experiment in s.experiments and not s.counted):
        (found,) = (c for c in compare(setting) if c.experiment == experiment)
        compared += found.agrees is not None
        if found.agrees is False:
            wrong.append(f"{setting.parameter}: the paper has {setting.printed}, here {found.value} {found.why}")
    assert not wrong
    assert compared >= 7


@pytest.mark.parametrize("number", [9, 11])
def test_what_no_graph_configuration_holds_is_in_the_network(number):
    """Rows whose keys a configuration may leave out: beta, whether it is trained, and the three biases."""
    settings = {s.parameter: s for s in paper.load(number).settings}
    for experiment in {e for s in settings.values() for e in s.experiments if has_experiment(e)}:
        network = instantiate(config_of(Key(experiment, 0, "held_out", "paper").overrides())["model"])
        for block in network.blocks:
            attention, hopfield = block.attention, block.hopfield
            assert attention.beta.tolist() == [pytest.approx(settings["β"].value)] * len(attention.beta)
            assert isinstance(attention.beta, nn.Parameter) is settings["train_betas"].value
            assert (hopfield.bias is not None) is settings["bias in HN"].value
            assert (attention.b_query is not None or attention.b_key is not None) is settings["bias in ATT"].value
            assert (block.norm.delta is not None) is settings["bias in LNORM"].value


def setting(**changes):
    (found,) = (s for s in paper.load(4).settings if s.parameter == "β")
    return replace(found, **changes)


def test_a_disagreement_is_found():
    (found,) = compare(setting(value=0.2))
    assert (found.agrees, found.value) == (False, 0.125)


def test_a_key_that_no_longer_exists_is_a_disagreement():
    (found,) = compare(setting(keys=("model.no_such_key",), has_absent=False))
    assert found.agrees is False
    assert "none of model.no_such_key" in found.why


def test_an_absent_key_means_what_the_table_says():
    (found,) = compare(setting(keys=("model.no_such_key",)))
    assert (found.agrees, found.value) == (True, 0.125)  # 1/sqrt(model.head_dim)


def test_an_experiment_that_is_not_there_is_left_out():
    assert compare(setting(experiments=("no_such_experiment",))) == []


@pytest.mark.parametrize(
    ("value", "expected", "equal"),
    [
        (1, 1.0, True), (1e-3, 0.001, True), (0.1, 0.2, False), ([0.9, 0.99], [0.9, 0.99], True),
        ([0.9], [0.9, 0.99], False), (None, None, True), (None, 0.0, False), (True, 1, False), (True, True, True),
        ("3x3", "3x3", True), (0.9, [0.9], False),
    ],
)  # fmt: skip
def test_equality_of_settings(value, expected, equal):
    assert same(value, expected) is equal


def test_parameters_of_table_15_are_counted_from_the_real_network():
    """2 · 12 · 64 · 768 for the attention, 3072 · 768 memories, 1 + 768 for the layer norm; 4.87M in all."""
    counts = count_parameters("imagenet_inpainting")
    assert counts["block_params"] == 2 * 12 * 64 * 768 + 3072 * 768 + 769
    assert round(counts["params"] / 1e6, 2) == 4.87
