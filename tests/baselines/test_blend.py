"""Networks combined, with trees or with each other: what they score and what they learn from."""

from __future__ import annotations

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from et.anomaly.known_labels import visible_labels
from et.anomaly.lit import weighted_cross_entropy
from et.baselines.blend import Blend, Ensemble
from et.core import EdgeTopology
from et.runs.config_check import check_config
from et.runs.identity import check_overrides, config_of
from et.training.evaluation import evaluate
from et.training.run import train
from et.utils.errors import UserError
from tests.anomaly.test_known_labels import task_of, with_labels
from tests.configs import ROOT

SMALL = ["model.trees.rounds=5", "model.trees.min_samples_leaf=5", "trainer.max_epochs=2", "data.num_features=null"]


def blend_on_a_graph() -> tuple[Blend, tuple]:
    torch.manual_seed(0)
    features, edges, labels = torch.randn(60, 5), torch.randint(0, 60, (2, 90)), torch.arange(60) % 2
    topology = EdgeTopology(torch.cat([edges, edges.flip(0)], dim=1), 60)
    sizes = {"dim": 8, "num_heads": 2, "head_dim": 4, "num_memories": 6, "steps": 1, "position_embedding": False}
    blend = Blend.of_et({"rounds": 5, "min_samples_leaf": 2}, in_features=5, known_labels=True, **sizes)
    train = torch.arange(40)
    blend.fit(features, [topology], labels, train)
    return blend, (features, [topology], None, visible_labels(labels, train))


def test_the_score_is_the_mean_and_the_network_learns_alone():
    blend, inputs = blend_on_a_graph()
    of_network, of_trees = blend.network(*inputs), blend.trees(*inputs)
    assert blend.takes_known_labels and blend.trees.takes_known_labels
    assert not torch.allclose(of_network, of_trees)
    torch.testing.assert_close(blend(*inputs), of_network)
    blend.eval()
    torch.testing.assert_close(blend(*inputs), (of_network + of_trees) / 2)
    torch.testing.assert_close(blend.score(*inputs), (of_network + of_trees) / 2)
    assert not blend.score(*inputs).requires_grad


def test_trees_answer_anew_where_their_input_is_another(monkeypatch):
    blend, (features, topologies, nodes, known) = blend_on_a_graph()
    calls, of_trees = [], blend.trees.raw_scores
    monkeypatch.setattr(blend.trees, "raw_scores", lambda inputs: calls.append(1) or of_trees(inputs))
    others = [EdgeTopology(torch.tensor([[0, 1], [1, 0]]), 60)]
    blend.eval()
    for inputs, expected in (
        ((features, topologies, nodes, known), 1),
        ((features, topologies, nodes, known.clone()), 1),
        ((features, topologies, nodes, None), 2),
        ((features, others, nodes, None), 3),
        ((features + 1, others, nodes, None), 4),
    ):
        found = blend(*inputs)
        assert len(calls) == expected
        torch.testing.assert_close(found, (blend.network(*inputs) + blend.trees(*inputs)) / 2)
        calls.pop()  # the one that this test made


def test_trees_that_are_not_fitted_say_so():
    blend = Blend.of_mlp(in_features=5).eval()
    with pytest.raises(RuntimeError, match="call fit first"):
        blend(torch.zeros(3, 5), [EdgeTopology(torch.zeros(2, 0).long(), 3)])


@pytest.mark.parametrize("suffix", ["encoded_blend_labels", "encoded_mlp_blend", "encoded_ensemble_labels"])
def test_a_checkpoint_scores_as_the_run_did(small_config, suffix):
    """It holds no trees: they are fitted again."""
    outcome = train(small_config(f"amazon_upu_gadbench_{suffix}", *(SMALL if "blend" in suffix else SMALL[2:])))
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        again = evaluate(compose("evaluate", [f"run={outcome.folder}"]))
    for name in ("test/auc", "test/average_precision"):
        assert again["metrics"][name] == pytest.approx(outcome.record["metrics"][name], rel=1e-6)


@pytest.mark.parametrize("extra", [[], ["model.label_hops=2"]])
@pytest.mark.parametrize("kind", ["blend", "ensemble"])
def test_no_label_reaches_its_own_score(small_config, extra, kind):
    """As :mod:`tests.anomaly.test_known_labels` has it for other networks; the trees stay as they were fitted."""
    small = SMALL if kind == "blend" else [*SMALL[2:], "model.members=2"]
    task, batch = task_of(small_config(f"amazon_upu_gadbench_encoded_{kind}_labels", *small, *extra))
    before = task.score(batch)
    for node in batch.train[:4].tolist():
        assert task.score(with_labels(batch, node))[node] == before[node]
    hidden = torch.cat([batch.val, batch.test])
    assert torch.equal(task.score(with_labels(batch, hidden)), before)
    assert not torch.equal(task.score(with_labels(batch, batch.train)), before)


def test_where_trees_have_no_place_a_blend_is_refused(small_config):
    for override, message in (
        ("protocol=released", "the trees have no part"),
        ("data.sample_ratio=0.5", "fitted once, on the whole graph"),
    ):
        with pytest.raises(UserError, match=message):
            train(small_config("amazon_upu_gadbench_encoded_blend", *SMALL, override))


def test_what_does_nothing_under_released_is_refused():
    overrides = ["experiment=reddit_gadbench_encoded_blend", "fidelity=released", "model.step_size=0.5"]
    with pytest.raises(UserError, match="does nothing under fidelity=released"):
        check_overrides(overrides, config_of(overrides))


def test_keys_and_values_of_both_parts_are_checked(small_config):
    def check(*overrides: str) -> None:
        cfg = small_config("amazon_upu_gadbench_encoded_blend", *overrides)
        check_config(OmegaConf.to_container(cfg, resolve=True))

    check("model.dim=8", "model.trees.rounds=8")
    for override, message in (
        ("+model.dimm=8", r"Blend takes no dimm; did you mean model\.dim"),
        ("model.combine=sum", r"model\.combine must be"),
        ("+model.trees.round=8", r"did you mean model\.trees\.rounds"),
        ("model.trees.rounds=many", r"model\.trees\.rounds must be"),
    ):
        with pytest.raises(UserError, match=message):
            check(override)
    with pytest.raises(UserError, match=r"set model\.known_labels"):
        Blend.of_mlp({"known_labels": True}, in_features=5)
    with pytest.raises(UserError, match=r"set model\.label_hops"):
        Blend.of_mlp({"label_hops": 2}, in_features=5)
    with pytest.raises(UserError, match=r"model\.trees has settings"):
        Blend.of_mlp(3, in_features=5)


def ensemble_on_a_graph() -> tuple[Ensemble, tuple]:
    torch.manual_seed(0)
    inputs = torch.randn(20, 5), [EdgeTopology(torch.randint(0, 20, (2, 40)), 20)], None, None
    return Ensemble.of_mlp(members=3, in_features=5, hidden=4), inputs


def test_an_ensemble_scores_the_mean_of_networks_that_learn_alone():
    ensemble, inputs = ensemble_on_a_graph()
    each, labels = ensemble(*inputs), torch.arange(20) % 2
    assert each.shape == (20, 3) and not torch.allclose(each[:, 0], each[:, 1])
    loss = weighted_cross_entropy(each, labels, 2.0)
    alone = [weighted_cross_entropy(network(*inputs), labels, 2.0) for network in ensemble.networks]
    torch.testing.assert_close(loss, sum(alone) / 3)
    loss.backward()
    for network, own in zip(ensemble.networks, alone, strict=True):
        gradients = torch.autograd.grad(own, list(network.parameters()))
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient / 3)
    ensemble.eval()
    torch.testing.assert_close(ensemble(*inputs), each.mean(1))
    torch.testing.assert_close(ensemble.score(*inputs), each.mean(1))
    assert not ensemble.score(*inputs).requires_grad


def test_an_ensemble_under_released_measures_its_training_steps(small_config):
    overrides = ["protocol=released", "~callbacks.ema", "model.members=2", *SMALL[2:]]
    metrics = train(small_config("amazon_upu_gadbench_encoded_ensemble", *overrides)).record["metrics"]
    assert 0 < metrics["test/average_precision"] <= 1


def test_an_ensemble_has_members():
    for members in (0, -1):
        with pytest.raises(ValueError, match="members must be a whole number of at least 1"):
            Ensemble.of_mlp(members=members, in_features=5)
