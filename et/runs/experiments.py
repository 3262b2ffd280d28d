"""Which experiments there are: the files of conf/experiment, and what conf/variants.yaml composes from them.

``yelp_1pct_bwgnn`` has no file. It is the experiment ``yelp_1pct`` with the variant ``bwgnn``: the same data and the
same split with another model. ``yelp_1pct_no_hopfield`` is ``yelp_1pct`` with one value changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml
from omegaconf import OmegaConf

from et.utils.paths import CONF

FOLDER = CONF / "experiment"
# Task, data and model of conf/train.yaml itself: nothing was chosen, so that there is no name.
UNCHOSEN = "inpainting-photos-"


@cache
def files() -> tuple[str, ...]:
    """Names of the experiments that have a file, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


@cache
def names() -> tuple[str, ...]:
    """Names of all experiments, sorted: those that have a file and those that are composed."""
    found, added = set(files()), set(files())
    while added:  # a variant may itself have variants: yelp_1pct_bwgnn_hetero
        added = {f"{base}_{v['suffix']}" for base in added for v in _variants() if re.fullmatch(v["of"], base)} - found
        found |= added
    return tuple(sorted(found))


def is_composed(name: str) -> bool:
    """True if ``name`` is an experiment without a file of its own."""
    return name not in files() and name in names()


@cache
def composed(name: str) -> dict[str, Any]:
    """Content of the file that the composed experiment ``name`` would have, for the package ``_global_``.

    Raises:
        KeyError: No file and no variant gives an experiment of that name.
    """
    for variant in _variants():
        base = name.removesuffix(f"_{variant['suffix']}")
        if base != name and re.fullmatch(variant["of"], base) and base in names():
            break
    else:
        raise KeyError(name)
    adds = OmegaConf.create(variant.get("adds", {}))
    if "base" not in variant:
        return {"defaults": [base, "_self_"], "name": name, **OmegaConf.to_container(adds)}
    # Another model on the data of `base`: of its own settings only those are kept that belong to the data.
    choices, settings = _flattened(base)
    kept = OmegaConf.create()
    for key in _content()["kept_settings"]:
        if OmegaConf.select(settings, key) is not None:
            OmegaConf.update(kept, key, OmegaConf.select(settings, key))
    overrides = [{f"override /{group}": choices[group]} for group in _content()["kept_groups"] if group in choices]
    body = OmegaConf.to_container(OmegaConf.merge(kept, adds))
    return {"defaults": [f"base/{variant['base']}", "_self_", *overrides], "name": name, **body}


def free_name(choices: str) -> dict[str, str]:
    """The name of a run that is no experiment, as content of a configuration file: ``anomaly-yelp-bwgnn``.

    Args:
        choices: Names of the chosen task, data and model, joined by ``-``. The model is empty if it is the task's own.
    """
    return {} if choices == UNCHOSEN else {"name": choices.strip("-")}


def _flattened(name: str) -> tuple[dict[str, str], Any]:
    """The config groups that experiment ``name`` chooses, and its settings, with those of the files it builds on."""
    raw: Mapping[str, Any] = (
        composed(name) if is_composed(name) else yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    )
    choices: dict[str, str] = {}
    settings = OmegaConf.create()
    own = OmegaConf.create({key: value for key, value in raw.items() if key != "defaults"})
    for entry in raw.get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            groups, inherited = _flattened(entry)
            choices |= groups
            settings = OmegaConf.merge(settings, inherited)
        elif isinstance(entry, dict):
            choices |= {key.removeprefix("override /"): value for key, value in entry.items()}
    return choices, OmegaConf.merge(settings, own)


def _variants() -> list[dict[str, Any]]:
    return _content()["variants"]


@cache
def _content() -> dict[str, Any]:
    return yaml.safe_load((CONF / "variants.yaml").read_text())


if __name__ == "__main__":
    print(*names(), sep="\n")
