"""Which experiments there are: the files of conf/experiment, and what conf/variants.yaml composes.

``yelp_1pct`` has no file. It is the data file ``yelp`` with the settings of a cell of table 1. Nor has
``yelp_1pct_bwgnn``. It is ``yelp_1pct`` with the variant ``bwgnn``: the same data and split with another model.
``yelp_1pct_no_hopfield`` is ``yelp_1pct`` with one value changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
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
    found = set(files()) | set(_cells())
    added = found
    while added:  # a variant may itself have variants: yelp_1pct_bwgnn_hetero
        added = {f"{base}_{v['suffix']}" for base in added for v in _content()["variants"] if _is_of(v, base)} - found
        found |= added
    return tuple(sorted(found))


def described() -> dict[str, dict[str, str]]:
    """Experiments that are no variants, by group: a sentence for each name, from the comments in the files.

    Groups are the paper's tables in order ("Table 1"), then "Demo", "Tuned", "Smoke tests", "GADBench" and "Other".
    """
    groups: dict[str, dict[str, str]] = {}
    for name in files():
        comments = _comments(FOLDER / f"{name}.yaml")
        groups.setdefault(_group(name, " ".join(comments)), {})[name] = _first_sentence(comments)
    for name, (data, cell) in sorted(_cells().items()):
        sentence = _first_sentence(_comments(CONF / "data" / f"{data}.yaml"))
        groups.setdefault(cell["group"], {})[name] = ", ".join(filter(None, (sentence, cell.get("about"))))

    return {group: groups[group] for group in in_order(groups)}


def in_order(groups: Iterable[str]) -> list[str]:
    """Names of groups as :func:`described` orders them: tables by number, then the others."""

    def place(group: str) -> tuple[int, int]:
        number = re.fullmatch(r"Table (\d+)", group)
        return (0, int(number[1])) if number else (1, _LAST_GROUPS.index(group))

    return sorted(groups, key=place)


_LAST_GROUPS = ("Demo", "Tuned", "Smoke tests", "GADBench", "Other")


def _comments(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("#").strip() for line in lines if line.startswith("#") and "@package" not in line]


def _first_sentence(comments: list[str]) -> str:
    sentence = re.split(r"(?<=[a-z0-9)])\. |(?<=[a-z0-9)]);|\.$", comments[0] if comments else "")[0]
    return re.sub(r"\s*\([^)]*$", "", sentence)  # a bracket that the cut left open


def _group(name: str, comment: str) -> str:
    for start, group in (("demo", "Demo"), ("smoke", "Smoke tests")):
        if name.startswith(start):
            return group
    if name.endswith("_tuned"):
        return "Tuned"
    table = re.search(r"[Tt]ables? (\d+)", comment)
    return f"Table {table[1]}" if table else "Other"


def variants_of(name: str) -> tuple[str, ...]:
    """Suffixes of the experiments composed from ``name``: ``yelp_1pct`` has ``mlp``, so there is ``yelp_1pct_mlp``."""
    return tuple(dict.fromkeys(v["suffix"] for v in _content()["variants"] if _is_of(v, name)))


def split_name(name: str) -> tuple[str, str]:
    """An experiment that is no variant, and the suffixes that make ``name`` of it: ``yelp_1pct``, ``bwgnn_hetero``."""
    start = name.removesuffix("_tuned")
    while True:
        bases = ((v, start.removesuffix(f"_{v['suffix']}")) for v in _content()["variants"])
        base = next((base for v, base in bases if base != start and _is_of(v, base) and base in names()), None)
        if base is None:
            return start, name[len(start) + 1 :]
        start = base


def tables_of_variants() -> dict[str, tuple[dict[str, str], tuple[str, ...]]]:
    """Tables whose experiments are composed, such as "Table 12": what each suffix means, and the names that take it."""
    return {
        f"Table {number}": (suffixes, tuple(name for name in names() if f"{name}_{next(iter(suffixes))}" in cells))
        for number, suffixes in _content()["tables"].items()
        for cells in [_swept(number)]
    }


def _swept(table: int) -> set[str]:
    """Experiments of a table's sweep."""
    sweep = yaml.safe_load((CONF / "sweep" / f"table{table:02d}.yaml").read_text(encoding="utf-8"))
    return set(re.findall(r"\w+", sweep["hydra"]["sweeper"]["params"]["experiment"]))


def is_composed(name: str) -> bool:
    """True if ``name`` is an experiment without a file of its own."""
    return name not in files() and name in names()


@cache
def composed(name: str) -> dict[str, Any]:
    """Content of the file that the composed experiment ``name`` would have, for the package ``_global_``.

    Raises:
        KeyError: No file and no variant gives an experiment of that name.
    """
    if name in _cells():
        data, cell = _cells()[name]
        defaults = [f"base/{cell['base']}", "_self_", {"override /data": data}]
        return {"defaults": defaults, "name": name, **cell.get("adds", {})}
    for variant in _content()["variants"]:
        base = name.removesuffix(f"_{variant['suffix']}")
        if base != name and _is_of(variant, base) and base in names():
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


@cache
def _cells() -> dict[str, tuple[str, Mapping[str, Any]]]:
    """The data file and the entry of conf/variants.yaml that make an experiment, by the experiment's name."""
    data_files = sorted(path.stem for path in (CONF / "data").glob("*.yaml"))
    return {
        cell["name"].format(data=data): (data, cell)
        for cell in _content()["cells"]
        for data in data_files
        if re.fullmatch(cell["data"], data)
    }


def _is_of(variant: Mapping[str, Any], name: str) -> bool:
    """True if the experiment ``name`` has this variant."""
    return re.fullmatch(variant["of"], name) is not None


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


@cache
def _content() -> dict[str, Any]:
    return yaml.safe_load((CONF / "variants.yaml").read_text())


if __name__ == "__main__":
    print(*names(), sep="\n")
