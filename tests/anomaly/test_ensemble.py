"""Ensembles: what they score, what each member learns, and what a configuration may say of them."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from et.anomaly.ensemble import Ensemble
from et.anomaly.lit import weighted_cross_entropy
from et.core import EdgeTopology
from et.runs.config_check import check_config
from et.training.run import train
from et.utils.errors import UserError

SMALL = {"dim": 8, "num_heads": 2, "head_dim": 4, "num_memories": 6, "steps": 1, "position_embedding": False}


def ensemble_on_a_graph(**more) -> tuple[Ensemble, tuple]:
    torch.manual_seed(0)
    features, edges = torch.randn(30, 5), torch.randint(0, 30, (2, 90))
    topology = EdgeTopology(torch.cat([edges, edges.flip(0)], dim=1), 30)
    known = torch.randint(0, 3, (30,))
    return Ensemble.of_et(3, in_features=5, **SMALL, **more), (features, [topology], None, known)


def test_an_ensemble_scores_the_mean_of_members_that_differ():
    ensemble, inputs = ensemble_on_a_graph(known_labels=True, label_counts=True)
    of_each = torch.stack([network(*inputs) for network in ensemble.networks], dim=1)
    assert ensemble.takes_known_labels and (of_each.std(1) > 0).all()
    torch.testing.assert_close(ensemble(*inputs), of_each)
    ensemble.eval()
    torch.testing.assert_close(ensemble(*inputs), of_each.mean(1))
    torch.testing.assert_close(ensemble.score(*inputs), of_each.mean(1))


def test_each_member_of_an_ensemble_learns_from_its_own_loss():
    """Its gradients are those of the member trained alone."""
    ensemble, (features, topologies, _, _) = ensemble_on_a_graph(dropout=0.0)
    labels = torch.arange(30) % 2
    weighted_cross_entropy(ensemble(features, topologies), labels, 3.0).backward()
    together = [p.grad.clone() for p in ensemble.networks[1].parameters()]
    ensemble.zero_grad()
    weighted_cross_entropy(ensemble.networks[1](features, topologies), labels, 3.0).backward()
    for own, before in zip(ensemble.networks[1].parameters(), together, strict=True):
        torch.testing.assert_close(own.grad, before)


def test_an_ensemble_of_nobody_is_an_error():
    with pytest.raises(ValueError, match="members"):
        Ensemble.of_mlp(0, in_features=5)


@pytest.mark.parametrize("suffix", ["encoded_ensemble_labels", "encoded_mlp_ensemble"])
@pytest.mark.parametrize("protocol", ["gadbench", "released"])
def test_an_ensemble_trains_under_every_protocol(small_config, suffix, protocol):
    sizes = ["trainer.max_epochs=2", "model.members=2", "data.num_features=null"]
    outcome = train(small_config(f"amazon_upu_gadbench_{suffix}", *sizes, f"protocol={protocol}"))
    assert 0 < outcome.record["metrics"]["test/average_precision"] <= 1


def test_keys_and_values_of_the_members_are_checked(small_config):
    def check(*overrides: str) -> None:
        cfg = small_config("amazon_upu_gadbench_encoded_ensemble", *overrides)
        check_config(OmegaConf.to_container(cfg, resolve=True))

    check("model.dim=8")
    with pytest.raises(UserError, match=r"Ensemble takes no dimm; did you mean model\.dim"):
        check("+model.dimm=8")
    with pytest.raises(UserError, match=r"model\.combine must be"):
        check("model.combine=sum")
