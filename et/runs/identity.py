"""Identity of runs: the configuration of a table's cell, composed as train.py does, and its run id."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from et.runs.config_check import check_choices, check_config, unknown_key
from et.runs.config_schema import FIDELITIES, PROTOCOLS
from et.runs.foreign import check_targets
from et.runs.record import ADDED_KEYS, hashed_config, plain_name, run_id
from et.utils.errors import UserError, constructor_of, first_line, keywords_go_to, unwrapped
from et.utils.paths import CONF

# Counts that the network is built from. If null in the configuration, they are read from the user's data.
COUNTS = ("num_nodes", "num_features", "num_relations", "num_edge_features", "num_classes")
_COUNTS_READ: dict[str, dict[str, int]] = {}  # counts of the data read so far by this process


@dataclass(frozen=True, order=True)
class Key:
    """Identity of a run with its experiment's own configuration: experiment, seed, protocol, fidelity and fold."""

    experiment: str
    seed: int
    protocol: str
    fidelity: str
    fold: int | None = None

    def overrides(self) -> list[str]:
        """Arguments of train.py for this run."""
        fold = [] if self.fold is None else [f"data.fold={self.fold}"]
        return [
            f"experiment={self.experiment}", f"seed={self.seed}", *fold,
            f"protocol={self.protocol}", f"fidelity={self.fidelity}",
        ]  # fmt: skip


def config_of(overrides: Iterable[str], source: str | None = None) -> dict[str, Any]:
    """Resolved configuration of ``python train.py OVERRIDES``, without Hydra's own section.

    Args:
        overrides: The overrides.
        source: File that they come from. Then they may name only the classes of :mod:`et.runs.foreign`. If None, they
            are the user's own.

    Raises:
        UserError: It does not compose (unknown experiment or key), lacks a mandatory value, or is not trusted.
    """
    return resolve(compose_config(overrides), source)


def compose_config(overrides: Iterable[str]) -> DictConfig:
    """Configuration of ``python train.py OVERRIDES`` with its interpolations, without Hydra's own section.

    Only choices of groups are composed, once per process: that takes 100x as long as setting values, which Hydra itself
    does afterwards.

    Raises:
        UserError: It does not compose: an unknown experiment or key, or a malformed override.
    """
    overrides = list(overrides)
    try:
        values = [_parsed(override) for override in overrides if _is_value(_parsed(override))]
        cfg = _compose_groups(tuple(o for o in overrides if not _is_value(_parsed(o)))).copy()
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
    except (HydraException, ValueError) as error:
        raise UserError(f"the configuration does not compose: {explain(error, overrides)}") from error
    return cfg


@cache
def _parsed(override: str) -> Override:
    return OverridesParser.create().parse_overrides([override])[0]


def _is_value(override: Override) -> bool:
    """True if an override sets one value: it chooses no file of a group and lists no values of a sweep."""
    key = override.key_or_group
    single = ("." in key and not key.startswith("hydra")) or key in ("seed", "protocol", "fidelity")
    return single and override.package is None and not override.is_sweep_override()


@cache
def _compose_groups(overrides: tuple[str, ...]) -> DictConfig:
    # Inside train.py Hydra is initialised.
    started = GlobalHydra.instance().is_initialized()
    with nullcontext() if started else initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return _compose_own(list(overrides))
        except HydraException:  # a choice of Hydra's own section, or what does not compose at all
            return compose("train", list(overrides))


class _Files(CachingConfigRepository):
    """The configuration files of one composition. Each is read once per process, which takes as long as all else."""

    read: dict[tuple[str, ...], ConfigResult] = {}

    def __init__(self, repository: ConfigRepository):
        self.delegate, self.cache = repository, {}

    def load_config(self, config_path: str) -> ConfigResult | None:
        if config_path not in self.cache:
            key = (*(source.path for source in self.get_sources()), config_path)
            found = self.read.get(key) or self.delegate.load_config(config_path)
            if found is not None:
                self.read[key] = found
                found = copy(found)
                found.config = deepcopy(found.config)  # composition changes it
            self.cache[config_path] = found
        return self.cache[config_path]


def _compose_own(overrides: list[str]) -> DictConfig:
    """As ``hydra.compose``, which also composes Hydra's own section, half of all files, to leave it out at the end."""
    loader = GlobalHydra.instance().config_loader()
    parsed, files = OverridesParser.create().parse_overrides(overrides), _Files(loader.repository)
    loader.validate_sweep_overrides_legal(parsed, RunMode.RUN, from_shell=False)
    root = files.load_config("train")
    root.defaults_list = [entry for entry in root.defaults_list if not entry.is_override()]  # of Hydra's logging
    chosen = create_defaults_list(files, "train", parsed, prepend_hydra=False, skip_missing=False)
    cfg = loader._compose_config_from_defaults_list(chosen.defaults, files)
    OmegaConf.set_struct(cfg, True)
    loader._apply_overrides_to_config(chosen.config_overrides, cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def check_overrides(overrides: Iterable[str], config: Mapping[str, Any]) -> None:
    """Refuse overrides that have no effect or the wrong type.

    Raises:
        UserError: A string replaces a number or boolean; or ``model.KEY`` is set under ``fidelity=released``, where
            only ``model.released.KEY`` has an effect, or none (``unused_by_released`` of the model's class): this would
            give the same run another id.
    """
    overrides = list(overrides)
    for override in overrides:
        _check_kind(override, overrides, config)
        section, *rest = override.lstrip("+").split("=", 1)[0].split(".")
        if section == "by_fidelity" and rest[:1] != [config.get("fidelity")]:
            raise UserError(f"{override} does nothing under fidelity={config.get('fidelity')}: leave it out")
    model = config.get("model") or {}
    if config.get("fidelity") != "released":
        return
    for override in overrides:
        group, _, key = override.lstrip("+").split("=", 1)[0].partition(".")
        if group == "model" and key in (model.get("released") or {}):
            other = f"where model.released.{key} counts: set that instead"
        elif group == "model" and key in _unused_by_released(model):
            other = "whose model has no such part: leave it out"
        else:
            continue
        raise UserError(f"{override} does nothing under fidelity=released, {other}")


def _unused_by_released(model: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys of a model without effect under ``fidelity=released``, in addition to those of its section ``released``."""
    try:
        built, call = constructor_of(model["_target_"])
        inner = keywords_go_to(call)
        return getattr(built if inner is None else constructor_of(inner)[0], "unused_by_released", ())
    except Exception:  # whatever an import may raise: check_config says that the class cannot be imported
        return ()


def _check_kind(override: str, overrides: Sequence[str], config: Mapping[str, Any]) -> None:
    """Raise UserError if ``override`` replaces a number or boolean by a string.

    Hardware keys are left to Lightning, which accepts words for some numbers (trainer.devices=auto).
    """
    key = override.lstrip("+").split("=", 1)[0]
    if key in ("protocol", "fidelity", "deterministic", "trainer.deterministic"):  # words; deterministic may be "warn"
        return
    if not isinstance(flatten(hashed_config(config)).get(key), str):
        return
    try:
        usual = flatten(config_of(o for o in overrides if o != override)).get(key)
    except UserError:  # the configuration does not compose without it, so there is no default
        return
    if isinstance(usual, bool | int | float):
        kind = "true or false belongs" if isinstance(usual, bool) else "a number belongs"
        raise UserError(f"{override}: {kind} there, such as {json.dumps(usual)}")


def fill_counts(cfg: DictConfig) -> DictConfig:
    """``cfg`` with null counts replaced by those of the user's data, which the network is built from.

    Raises:
        UserError: The data are missing or damaged.
    """
    data = cfg.get("data")
    open_keys = [key for key in COUNTS if isinstance(data, DictConfig) and key in data and data.get(key, 0) is None]
    if not open_keys:
        return cfg
    if open_keys == ["num_relations"] and data.get("merge"):  # merged relations are one graph: no need to read the data
        cfg = cfg.copy()
        cfg.data.num_relations = 1
        return cfg
    config = OmegaConf.to_container(data, resolve=True)
    file = Path(str(config.get("path") or ""))
    state = [file.stat().st_mtime_ns, file.stat().st_size] if file.is_file() else None
    key = json.dumps([{k: v for k, v in config.items() if k not in ("seed", "fold")}, state], sort_keys=True)
    if key not in _COUNTS_READ:
        from hydra.utils import instantiate  # late: torch and the data's libraries take seconds

        try:
            _COUNTS_READ[key] = instantiate(config).counts()
        except InstantiationException as error:
            cause = unwrapped(error)
            if isinstance(cause, (TypeError, ValueError)):  # of a value that the constructor does not take
                raise UserError(f"data: {cause}") from error
            raise cause from error
    cfg = cfg.copy()
    for name in open_keys:
        OmegaConf.update(cfg, f"data.{name}", _COUNTS_READ[key][name])
    return cfg


def resolve(cfg: DictConfig, source: str | None = None) -> dict[str, Any]:
    """``cfg`` as plain data with every interpolation resolved, without Hydra's own section.

    Null counts are read from the user's data (:func:`fill_counts`).

    Args:
        cfg: Composed configuration.
        source: As of :func:`config_of`.

    Raises:
        UserError: A mandatory value is missing, an interpolation does not resolve, or a class is not trusted.
    """
    try:
        config: Any = _to_plain(cfg)
        if source is not None:  # before fill_counts, which builds the data module
            check_targets(config, source)
        filled = fill_counts(cfg)
        if filled is not cfg:
            config = _to_plain(filled)
    except OmegaConfBaseException as error:
        check_choices(cfg)  # other values are looked up by these
        other = "; the data are of another task: choose data=NAME" if "key 'data." in str(error) else ""
        raise UserError(f"the configuration does not resolve: {first_line(error)}{other}") from error
    config.pop("hydra", None)
    return config


def _to_plain(cfg: DictConfig) -> Any:
    try:
        config = OmegaConf.to_container(cfg, resolve=True)
        if "???" not in flatten(config).values():  # looking for missing keys resolves everything again
            return config
    except OmegaConfBaseException:
        config = None
    missing = [key for key in OmegaConf.missing_keys(cfg) if not key.startswith("hydra.")]
    if missing:
        raise UserError(f"the configuration lacks {', '.join(sorted(missing))}: choose experiment=NAME or set them")
    return config or OmegaConf.to_container(cfg, resolve=True)


def key_of(config: Mapping[str, Any]) -> Key:
    """Key of the cell that a resolved configuration claims to belong to."""
    data = config.get("data") or {}
    return Key(config["name"], config["seed"], config["protocol"], config["fidelity"], data.get("fold"))


def claimed_key(record: Mapping[str, Any], fold: Any, where: str) -> Key:
    """Key of the cell that a record claims to belong to.

    Args:
        record: The record.
        fold: Its fold; None if there is none.
        where: Name of its file in error messages.

    Raises:
        UserError: A value that no run has, which Hydra might take for something else.
    """
    name = plain_name(record.get("experiment"), f"{where}: experiment")
    seed, protocol, fidelity = (record.get(key) for key in ("seed", "protocol", "fidelity"))
    for key, valid in (
        ("seed", type(seed) is int), ("protocol", protocol in PROTOCOLS), ("fidelity", fidelity in FIDELITIES),
        ("fold", type(fold) in (int, type(None))),
    ):  # fmt: skip
        if not valid:
            raise UserError(f"{where}: no run has the {key} {fold if key == 'fold' else record.get(key)!r}")
    return Key(name, seed, protocol, fidelity, fold)


def differences(config: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Hashed values in which two resolved configurations differ, as (first, second) by dotted key.

    A key of :data:`et.runs.record.ADDED_KEYS` that the hash leaves out has its former value.
    """
    a, b = (_with_former_values(flatten(hashed_config(one)), one.get("fidelity")) for one in (config, other))
    return {key: (a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)}


def _with_former_values(values: Mapping[str, Any], fidelity: str | None) -> dict[str, Any]:
    return {key: before[fidelity] for key, before in ADDED_KEYS.items() if fidelity in before} | dict(values)


def reproduces(overrides: Iterable[str], identity: str, source: str | None = None) -> bool:
    """True if ``python train.py OVERRIDES`` has the run id ``identity`` with the current configuration files.

    Args:
        overrides, source: As of :func:`config_of`.
        identity: The run id.
    """
    try:
        return run_id(config_of(overrides, source)) == identity
    except UserError:
        return False


def explain(error: Exception, overrides: Sequence[str], config_name: str = "train") -> str:
    """One sentence on why a configuration does not compose: the nearest names, or the valid keys.

    Args:
        error: Hydra's error; a ValueError if a group is set to something other than the name of a file.
        overrides: The overrides.
        config_name: Root of the configuration in conf/.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        names = difflib.get_close_matches(name, list(error.options), 5, cutoff=0.0)
        listing = "python -m et.runs.experiments" if group == "experiment" else f"ls {CONF / group}"
        return f"there is no {group} {name!r}; the nearest: {', '.join(names)}. `{listing}` lists all"
    refused = re.search(r"Could not override '([^']+)'", str(error))
    added = [f"+{o}" if refused and o.split("=")[0] == refused[1] else o for o in overrides]
    if isinstance(error, OverrideParseException):
        key, given, value = str(error.override).partition("=")
        if given and not re.match(r"[\[{\"']", value):  # no list or dictionary without its end, and no quotes
            quoted = value.replace('"', r"\"")
            return f"Hydra cannot read {error.override}: quote the value, '{key}=\"{quoted}\"'"
    if refused is None or added == list(overrides):
        return first_line(error)
    key = refused[1]
    if key.startswith("sweep."):
        files = {file.stem: OmegaConf.load(file) for file in sorted(CONF.glob("sweep/*.yaml"))}
        having = [name for name, content in files.items() if "base" in content.get("defaults", [])]
        return f"only a sweep file has {key}: --multirun sweep=NAME, NAME one of {', '.join(having)}"
    swept = [parsed.key_or_group for parsed in map(_parsed, overrides) if parsed.is_sweep_override()]
    if swept:  # Hydra composes once without their values, which may bring the key
        return f"{key} has no value until {', '.join(swept)} has one: in a multirun write '{key}=choice(VALUE)'"
    if config_name != "train":
        known = [name for name in OmegaConf.load(CONF / f"{config_name}.yaml") if name not in ("defaults", "hydra")]
        return unknown_key("", key, known, {})
    try:  # once it is added, its section says what it thinks of it
        check_config(resolve(compose_config(added)))
    except UserError as problem:
        return str(problem).removeprefix("the configuration does not compose: ")
    return f"{key} has no value yet in this configuration: write +{key}=..."


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to values by dotted key."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, child in value.items():
        found.update(flatten(child, f"{prefix}.{name}" if prefix else str(name)))
    return found
