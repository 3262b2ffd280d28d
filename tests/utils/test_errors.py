"""Which errors are the user's, and what is left of them without Hydra's wrapping."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from et.utils.errors import (
    ArgumentsOf,
    UserError,
    accepted_keys,
    is_user_error,
    keywords_go_to,
    raise_user_errors,
    unwrapped,
    user_message,
)


def wrapped(cause):
    error = InstantiationException("Error in call to target")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("cause, mendable", [(UserError("x"), True), (ValueError("x"), True), (TypeError("x"), False)])
def test_what_a_constructor_raised(cause, mendable):
    error = wrapped(cause)
    assert unwrapped(error) is cause and is_user_error(error) == mendable


def test_errors_of_no_constructor_stay_what_they_are():
    for error, mendable in ((UserError("x"), True), (ValueError("x"), False), (wrapped(None), False)):
        assert unwrapped(error) is error and is_user_error(error) == mendable


def built(target: str, **arguments) -> Exception:
    with pytest.raises(InstantiationException) as caught:
        instantiate({"model": {"_target_": target, **arguments}})
    return unwrapped(caught.value)


class Faulty(torch.nn.Module):
    """Its own mistake looks like one of the configuration."""

    def __init__(self, bias: bool = True):
        super().__init__()
        self.layer = torch.nn.ReLU(bias=bias)


def test_a_mistake_within_a_constructor_stays_what_it_is():
    error = built(f"{__name__}.Faulty", bias=False)
    assert isinstance(error, TypeError) and "ReLU" in str(error)


def test_keys_handed_on_to_the_class_that_is_extended_are_known():
    error = built("et.anomaly.lit.FittedTask", network=None, optim=None, balanc=1)
    assert "did you mean model.balance?" in str(error)


class HandsOn:
    """A class that hands its keywords on to another."""

    def __init__(self, own: int, **more: Annotated[Any, ArgumentsOf("et.baselines.node_mlp.NodeMLP")]):
        pass

    @classmethod
    def to_anything(cls, own: int, **more: Annotated[Any, ArgumentsOf("builtins.dict")]) -> HandsOn:
        return cls(own)


def test_annotated_keywords_are_those_of_the_class_they_go_to():
    assert accepted_keys("tests.utils.test_errors.HandsOn")[:3] == ("own", "in_features", "hidden")
    assert accepted_keys("tests.utils.test_errors.HandsOn.to_anything") is None
    assert keywords_go_to(HandsOn) == "et.baselines.node_mlp.NodeMLP"
    assert keywords_go_to(dict) is None and keywords_go_to(HandsOn.__repr__) is None


def test_a_key_that_a_class_does_not_take_is_told_with_those_it_takes():
    error = built("et.baselines.graph_networks.GIN", num_blocks=2)
    assert isinstance(error, UserError)
    assert str(error).startswith("model.num_blocks: GIN takes no num_blocks; it takes in_features")
    assert "_gin" in str(error)
    error = built("et.anomaly.data.NodeDataModule", trian_ratio=0.4)
    assert "did you mean model.train_ratio?" in str(error)
    error = built("et.graphs.model.GraphEnergyTransformer.of_fidelity", fidelity="paper", num_blok=1)
    assert "GraphEnergyTransformer takes no num_blok; did you mean model.num_blocks?" in str(error)


def test_what_a_loader_process_raised_comes_without_its_traceback():
    traceback = "Caught UserError in DataLoader worker process 1.\nOriginal Traceback ...\n"
    told = traceback + "et.utils.errors.UserError: bad.png is bad\n"
    assert str(unwrapped(UserError(told))) == "bad.png is bad"


def test_the_death_of_a_loader_process_and_what_lightning_refuses_are_told():
    died = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    assert user_message(died).startswith("a process of the data loader died (killed, or out of memory)")
    refused = type("MisconfigurationException", (Exception,), {})("no such accelerator")
    for error in (refused, wrapped(refused)):
        assert user_message(error) == "Lightning refuses this configuration: no such accelerator"
    for error, kind in ((died, UserError), (refused, UserError), (KeyError("bug"), KeyError)):
        with pytest.raises(kind), raise_user_errors():
            raise error
