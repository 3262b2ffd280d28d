"""The paper's configuration tables compared with the experiments, and parameter counts of their modules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from et.results.paper import Setting
from et.runs import experiments
from et.runs.identity import Key, config_of
from et.utils.errors import UserError


@dataclass(frozen=True)
class Compared:
    """A setting of the paper beside that of one experiment. ``agrees`` is None if nothing is compared."""

    experiment: str
    value: Any
    agrees: bool | None
    why: str = ""


def has_experiment(name: str) -> bool:
    """True if there is an experiment of that name, with a file or composed."""
    return name in experiments.names()


def compare(setting: Setting) -> list[Compared]:
    """The setting in each of its existing experiments."""
    return [_compare(setting, name) for name in setting.experiments if has_experiment(name)]


def _compare(setting: Setting, experiment: str) -> Compared:
    if setting.counted:
        # Printed counts are of the released models; they are shown, not held against the experiment files.
        count = count_parameters(experiment, "released")[setting.counted]
        return Compared(experiment, count, None, "counted under fidelity=released")
    if not setting.keys:
        return Compared(experiment, None, None, setting.why)
    config = _configuration(experiment)
    values = [value for key in setting.keys if (value := _select(config, key)) is not None]
    if not values and not setting.has_absent:
        return Compared(experiment, None, False, f"the configuration has none of {', '.join(setting.keys)}")
    value = values[0] if values else _implied(setting.absent, config)
    return Compared(experiment, value, same(value, setting.value))


def same(value: Any, expected: Any) -> bool:
    """Equality of settings: numbers up to rounding, lists element by element."""
    if isinstance(expected, list):
        return isinstance(value, list) and len(value) == len(expected) and all(map(same, value, expected))
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    numbers = all(isinstance(v, int | float) for v in (value, expected))
    return math.isclose(value, expected, rel_tol=1e-6) if numbers else value == expected


@cache
def _configuration(experiment: str) -> dict[str, Any]:
    return config_of(Key(experiment, 0, "held_out", "paper").overrides())


def _select(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _implied(absent: Any, config: Mapping[str, Any]) -> Any:
    """Meaning of an absent key; "1/sqrt(KEY)" is computed from another key."""
    if isinstance(absent, str) and absent.startswith("1/sqrt("):
        return 1 / math.sqrt(_select(config, absent[len("1/sqrt(") : -1]))
    return absent


@cache
def count_parameters(experiment: str, fidelity: str = "paper") -> dict[str, int]:
    """Parameters of an experiment's network: ``params`` in total, ``block_params`` in one ET (or transformer) block.

    The network is built on the meta device, without memory for its weights.

    Raises:
        UserError: The experiment does not exist, or its network does not build.
    """
    import torch
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    config = config_of(Key(experiment, 0, "held_out", fidelity).overrides())
    try:
        with torch.device("meta"):
            network = instantiate(config["model"])
    except InstantiationException as error:
        raise UserError(f"the network of {experiment} does not build: {error.__cause__ or error}") from error
    counts = {"params": sum(p.numel() for p in network.parameters())}
    block = getattr(network, "block", None)
    blocks = getattr(network, "blocks", None)
    if block is None and blocks is not None and len(blocks):
        block = blocks[0]
    if block is not None:
        counts["block_params"] = sum(p.numel() for p in block.parameters())
        # The released graph model keeps each block's mixing of the heads beside the block.
        mixes = getattr(network, "head_mix", None)
        counts["block_params"] += mixes[0].numel() if mixes is not None and len(mixes) else 0
    return counts
