"""What a configuration may say: unknown keys and values are refused before any work, with the nearest right one.

Where a section names a class (``_target_``), its constructor says which keys and values there are. The other sections
are listed in :mod:`et.runs.config_schema`.

Not Hydra's structured configurations: their dataclasses would repeat the arguments of every constructor, defaults
included, and there would be none for a user's own class.
"""

from __future__ import annotations

import difflib
import inspect
import itertools
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from et.runs.config_schema import CHOICES, FIDELITIES, GIVEN, HANDED_ON, NODE, REPLACED, REQUIRED, TOP, Section
from et.utils.errors import (
    UserError,
    accepted_keys,
    constructor_of,
    handed_on_to,
    key_not_taken,
    keywords_go_to,
)

OF_HYDRA = ("_target_", "_args_", "_recursive_", "_partial_", "_convert_")


def check_config(config: Mapping[str, Any], classes: bool = True) -> None:
    """Refuse a configuration with keys or values that mean nothing.

    Args:
        config: A resolved configuration.
        classes: If True, sections that name classes are checked too, which imports these classes.

    Raises:
        UserError: An unknown key or value; the message names the nearest right one.
    """
    _check_section(config, TOP, "", config, classes)
    present = set(_paths(config))
    absent = [key for key in REQUIRED if key not in present]
    if absent:
        raise UserError(f"the configuration lacks {_listed(absent)}: these cannot be taken away")
    for key, place in config["paths"].items():
        if not isinstance(place, str | Path):
            raise UserError(f"paths.{key} must be the name of a folder, not {place!r}")
    _check_by_fidelity(config.get("by_fidelity", {}))
    _check_followers(config)
    tags = config.get("tags")
    if tags is not None and not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
        raise UserError(f"tags must be a list of texts, such as [first,try], not {tags!r}")


def _check_followers(config: Mapping[str, Any]) -> None:
    """Refuse a section with another protocol or fidelity than the run, whose record names the run's.

    Data under ``held_out`` are allowed for ``protocol=released``: their split is stricter than what the record names.
    """
    for key, section in itertools.product(("protocol", "fidelity"), ("data", "model", "task")):
        part = config.get(section)
        value = part.get(key) if isinstance(part, Mapping) else None
        if value in (None, config.get(key)):
            continue
        if (section, value, config.get("protocol")) != ("data", "held_out", "released"):
            raise UserError(
                f"{section}.{key}={value}, but the run has {key}={config.get(key)}: set {key}={value} alone"
            )


def check_choices(cfg: DictConfig) -> None:
    """Raise UserError if a value of the root is none of those it can have; ``cfg`` need not resolve otherwise."""
    for key, choices in TOP.keys.items():
        if isinstance(choices, tuple):
            with suppress(OmegaConfBaseException):
                value = OmegaConf.select(cfg, key)
                if value is not None:
                    _check_choice(value, choices, key)


def _check_section(value: Any, section: Section, path: str, config: Mapping[str, Any], classes: bool) -> None:
    if not isinstance(value, Mapping):
        raise UserError(f"{path} is a section, with {_listed(section.keys) or 'classes'} in it, not {value!r}")
    for key, child in value.items():
        below = f"{path}.{key}" if path else str(key)
        kind = section.keys.get(key)
        if getattr(section if key not in section.keys else kind, "nodes", False) and _is_node(child):
            _check_node(child, below, config, classes)
            continue
        if key not in section.keys:
            raise UserError(unknown_key(path, str(key), tuple(section.keys), config, section.nodes))
        if kind == NODE:
            _check_node(child, below, config, classes)
        elif isinstance(kind, Section):
            if child is not None or key not in ("sweep", "pictures"):
                _check_section(child, kind, below, config, classes)
        elif isinstance(kind, Mapping):
            _check_variant(child, kind, below, config, classes)
        elif isinstance(kind, tuple):
            _check_choice(child, kind, below)


def _check_by_fidelity(values: Any) -> None:
    """Refuse values by fidelity that nothing can interpolate from: both fidelities have the same keys."""
    if values and not (isinstance(values, Mapping) and set(values) == set(FIDELITIES)):
        raise UserError(f"by_fidelity has the keys {_listed(FIDELITIES)}, not {_listed(values)}")
    paper, released = (set((values or {}).get(fidelity) or ()) for fidelity in FIDELITIES)
    for key in sorted(paper ^ released):
        raise UserError(f"by_fidelity: only one fidelity has {key}; both have {_listed(paper & released) or 'none'}")


def _is_node(value: Any) -> bool:
    """True if ``value`` is a section that names a class."""
    return isinstance(value, Mapping) and "_target_" in value


def _check_variant(
    value: Any, variants: Mapping[str, Section], path: str, config: Mapping[str, Any], classes: bool
) -> None:
    """A section whose ``name`` says which keys it has."""
    name = value.get("name") if isinstance(value, Mapping) else None
    _check_choice(name, tuple(variants), f"{path}.name")
    for key in value:
        others = [other for other, section in variants.items() if key in section.keys and other != name]
        if key not in variants[name].keys and others:
            needed = _listed([k for k in variants[others[0]].keys if k != "name"])
            raise UserError(
                f"{path}.{key}: there is none under {path}.name={name}; {path}.name={others[0]} takes {needed}"
            )
    _check_section(value, variants[name], path, config, classes)


def _check_node(value: Any, path: str, config: Mapping[str, Any], classes: bool) -> None:
    """A section that names the class it is for, and what is nested in it."""
    if not isinstance(value, Mapping) or not isinstance(value.get("_target_"), str):
        raise UserError(f"{path} must name a class as _target_, with its arguments, not be {value!r}")
    if not classes:
        return
    target = value["_target_"]
    if path == "optim.optimizer" and "_partial_" not in value:
        raise UserError(f"{path} lacks _partial_=true: it gets the parameters later")
    try:
        taken, hints = _accepted(target), _hints(target)
    except Exception as error:  # whatever an import may raise
        raise UserError(f"{path}._target_={target} cannot be imported: {type(error).__name__}: {error}") from error
    given = (*GIVEN.get(path, ()), *GIVEN.get(target, ()))
    for key, child in value.items():
        below = f"{path}.{key}"
        if key in OF_HYDRA:
            _check_hydra_key(str(key), child, path)
            continue
        if key in given:
            raise UserError(f"{below} is given by the run itself: leave it out")
        if taken is not None and key not in taken:
            known = [name for name in taken if name not in given]
            elsewhere = _same_name(str(key), path, config) if not _nearest(str(key), known) else None
            raise UserError(
                f"{below}: there is no such key; did you mean {elsewhere}?"
                if elsewhere
                else key_not_taken(path, str(key), target, known)
            )
        if (target, key) in CHOICES:
            _check_choice(child, CHOICES[target, key], below)
        elif key in hints:
            _check_hint(child, hints[key], below)
        inner = handed_on_to(hints.get(key))
        if inner is not None and isinstance(child, Mapping):
            _check_arguments(child, inner, below)
        else:
            _check_nested(child, below, config)


def _check_hydra_key(key: str, value: Any, path: str) -> None:
    """Refuse a key of Hydra's own by which a section would build something else than its class."""
    of_run = path in ("data", "model", "task", "trainer") or path.startswith(("callbacks.", "logger."))
    if key == "_args_":
        raise UserError(f"{path}.{key}: name the arguments instead")
    if key == "_partial_" and (value is True) != (path == "optim.optimizer") and (of_run or path == "optim.optimizer"):
        raise UserError(f"{path}.{key} must {'be true' if not of_run else 'be left out'}")
    if key == "_recursive_":
        _check_choice(value, (True, False), f"{path}.{key}")
    if key == "_convert_":
        _check_choice(value, ("none", "partial", "object", "all"), f"{path}.{key}")


def _accepted(target: str) -> tuple[str, ...] | None:
    """Names of the arguments of a class, with those that it hands on; None if it takes any."""
    taken = accepted_keys(target)
    if taken is not None or target not in HANDED_ON:
        return taken
    try:
        return tuple(
            name for call in HANDED_ON[target] for name in inspect.signature(constructor_of(call)[1]).parameters
        )
    except ImportError:  # its package is not installed, which the class says when it is built
        return None


def _check_arguments(value: Mapping[str, Any], target: str, path: str) -> None:
    """A mapping that is handed on as the arguments of ``target``."""
    taken, hints = accepted_keys(target), _hints(target)
    for key, child in value.items():
        if taken is not None and key not in taken:
            raise UserError(key_not_taken(path, str(key), target, list(taken)))
        if key in hints:
            _check_hint(child, hints[key], f"{path}.{key}")


def _check_nested(value: Any, path: str, config: Mapping[str, Any]) -> None:
    """Classes within the arguments of another."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            _check_node(value, path, config, True)
        else:
            for key, child in value.items():
                _check_nested(child, f"{path}.{key}", config)
    elif isinstance(value, list):
        for index, child in enumerate(value):
            _check_nested(child, f"{path}[{index}]", config)


def _check_choice(value: Any, choices: tuple[Any, ...], path: str) -> None:
    # 1 == True: a number is no truth value here.
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        close = _nearest(str(value), [str(choice) for choice in choices])
        hint = f"; did you mean {close}?" if close else ""
        raise UserError(f"{path} must be {_either(choices)}, not {value!r}{hint}")


def _check_hint(value: Any, hint: Any, path: str) -> None:
    """Refuse a value that an annotation rules out: not one of its literals, or a text where only numbers belong."""
    kinds = set(_members(hint))
    literals = tuple(_literals(hint))
    others = {kind for kind in kinds if get_origin(kind) is not Literal}
    if isinstance(value, str):
        if str in others or Any in others or others - {int, float, bool, type(None)}:
            return
        if not literals:
            raise UserError(f"{path} must be {_kinds(others)}, not the text {value!r}")
    elif others - {type(None)} or (value is None and type(None) in others):
        return
    if literals:
        _check_choice(value, (*literals, *([None] if type(None) in others else [])), path)


def _literals(hint: Any) -> Iterator[Any]:
    for kind in _members(hint):
        if get_origin(kind) is Literal:
            yield from get_args(kind)


def _members(hint: Any) -> Iterator[Any]:
    """The types that a union is of; any other type is its own only member."""
    if get_origin(hint) is Annotated:
        hint = hint.__origin__
    if get_origin(hint) in (typing.Union, types.UnionType):
        for member in get_args(hint):
            yield from _members(member)
    else:
        yield hint


@cache
def _hints(target: str) -> dict[str, Any]:
    """Annotations of the arguments of a class or function, by name; none where they cannot be resolved."""
    built, call = constructor_of(target)
    found: dict[str, Any] = {}
    for source in (call, *((built.__init__,) if isinstance(built, type) else ())):
        try:
            found = {**get_type_hints(source, include_extras=True), **found}
        except Exception:  # an annotation of somebody else's that does not resolve here says nothing
            continue
    inner = keywords_go_to(call)
    return found if inner is None else {**_hints(inner), **found}


def unknown_key(
    path: str, key: str, known: typing.Sequence[str], config: Mapping[str, Any], nodes: bool = False
) -> str:
    """What to say of a key that a section does not have."""
    name = f"{path}.{key}" if path else key
    if name in REPLACED:
        return f"{name}: this key was removed; {REPLACED[name]}"
    close = _nearest(key, known)
    other = f"{path}.{close}" if path and close else close or _same_name(key, path, config)
    if other:
        return f"{name}: there is no such key; did you mean {other}?"
    more = ", and classes to instantiate (a section with _target_)" if nodes else ""
    return f"{name}: there is no such key; {path or 'the configuration'} has {_listed(known) or 'none'}{more}"


def _same_name(key: str, path: str, config: Mapping[str, Any]) -> str | None:
    """Another key of the configuration that ends like this one."""
    for place in _paths(config):
        if place.rpartition(".")[2] == key and not place.startswith(f"{path}.{key}" if path else key):
            return place
    return None


def _paths(value: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, child in value.items():
            path = f"{prefix}.{key}" if prefix else str(key)
            if key not in OF_HYDRA:
                yield path
            yield from _paths(child, path)


def _nearest(word: str, known: typing.Iterable[str]) -> str | None:
    close = difflib.get_close_matches(word, list(known), 1, cutoff=0.75)
    return close[0] if close else None


def _listed(names: typing.Iterable[str]) -> str:
    return ", ".join(names)


def _either(choices: tuple[Any, ...]) -> str:
    shown = ["null" if c is None else str(c).lower() if isinstance(c, bool) else str(c) for c in choices]
    return " or ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]


def _kinds(kinds: set[Any]) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", type(None): "null"}
    return " or ".join(text for kind, text in names.items() if kind in kinds)
